"""One decoder for Qwen2, Qwen3 and Llama 3: pre-norm blocks, rotary positions, grouped queries.

Everything is folded to two dimensions [rows * slots, width] before a matrix product, and attention
is a batched product over [rows, key heads] without repeating keys or values: on a CPU this is what
separates a backward pass equal to torch's from one twice as slow, and accelerators lose nothing.

Shape letters beside those of `remix_jax.types`: N folded rows * slots, M = H / K query heads to a
key head, X = M * T, E head dimension. T is the number of slots that are queried: the last T of S.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from remix_jax import sharding
from remix_jax.models import attention
from remix_jax.models.execution import DEFAULTS, Execution
from remix_jax.models.products import attention_step, lookup, matmul
from remix_jax.sharding import ROWS, Places, constrain, places

# Of every layer: keys [B, K, E, S] (the layout in which a CPU multiplies them without copying them
# first) and values [B, K, S, E].
Cache = tuple[tuple[jax.Array, jax.Array], ...]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths beyond the pretraining context."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder; `dtype` is that of the operands of matrix products.

    Norms, rotary positions, softmax, the residual stream and logits are float32 whatever `dtype`.
    """

    architecture: str  # "qwen2" | "qwen3" | "llama": the family whose files it reads and writes
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    max_positions: int
    dtype: str = "float32"
    execution: Execution = DEFAULTS

    @property
    def param_dtype(self) -> str:
        """Of the parameters."""
        return self.execution.param_dtype or self.dtype


def rope_frequencies(config: DecoderConfig) -> np.ndarray:
    """Angular frequencies theta^(-2i/E), i < E / 2, in radians per position, float32 [E / 2].

    With Llama 3's scaling, a frequency that turns less than low_freq_factor times within the
    original context is divided by `factor`, one that turns more than high_freq_factor times is
    kept, and those between are interpolated linearly in their number of turns.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequency.astype(np.float32)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_positions * frequency / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (frequency * (kept + (1.0 - kept) / scaling.factor)).astype(np.float32)


def _rotate(x_NHE: jax.Array, cos_NE: jax.Array, sin_NE: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + E / 2]) by their position's angles."""
    N, H, E = x_NHE.shape
    x = x_NHE.reshape(N, H, 2, E // 2)
    signed_sin = jnp.stack([-sin_NE, sin_NE], axis=1)[:, None]
    return (x * cos_NE[:, None, None] + x[:, :, ::-1] * signed_sin).reshape(N, H, E)


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, float32."""

    size: int
    eps: float

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.size,))

    def __call__(self, x: jax.Array) -> jax.Array:
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale = self.scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return x * inverse * scale


class Linear(nn.Module):
    """x @ kernel (+ bias), operands in `dtype`, sums and result float32."""

    inputs: int
    outputs: int
    dtype: str
    use_bias: bool = False
    initializer: nn.initializers.Initializer = nn.initializers.normal(0.02)

    def setup(self):
        self.kernel = self.param("kernel", self.initializer, (self.inputs, self.outputs))
        if self.use_bias:
            self.bias = self.param("bias", nn.initializers.zeros, (self.outputs,))

    def __call__(self, x_ND: jax.Array) -> jax.Array:
        where = places((*self.path, "kernel"), self.kernel.shape)
        y_NF = matmul(x_ND, self.kernel, self.dtype, where)
        return y_NF + self.bias.astype(jnp.float32)[None] if self.use_bias else y_NF


class Embedding(nn.Module):
    """The token table, and the output projection of models that tie the two."""

    tokens: int
    width: int
    dtype: str

    def setup(self):
        shape = (self.tokens, self.width)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), shape)

    def __call__(self, tokens_N: jax.Array) -> jax.Array:
        return lookup(self.embedding, tokens_N)

    def logits(self, x_ND: jax.Array) -> jax.Array:
        """x times the transposed embedding: the tied head, [N, V]."""
        where = places((*self.path, "embedding"), self.embedding.shape)
        if where is not None:
            where = Places(*(P(*reversed(spec)) for spec in where))
        return matmul(x_ND, self.embedding.T, self.dtype, where)


class Layer(nn.Module):
    """One block: x + attention(norm(x)), then x + MLP(norm(x))."""

    config: DecoderConfig

    def setup(self):
        """The parts that hold parameters; their names are those of the tree."""
        c = self.config
        q_width, kv_width = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.attn_norm = Norm(c.width, c.norm_eps)
        self.q = Linear(c.width, q_width, c.dtype, c.qkv_bias)
        self.k = Linear(c.width, kv_width, c.dtype, c.qkv_bias)
        self.v = Linear(c.width, kv_width, c.dtype, c.qkv_bias)
        self.o = Linear(q_width, c.width, c.dtype)
        if c.qk_norm:
            self.q_norm = Norm(c.head_dim, c.norm_eps)
            self.k_norm = Norm(c.head_dim, c.norm_eps)
        self.mlp_norm = Norm(c.width, c.norm_eps)
        self.gate = Linear(c.width, c.ffn_width, c.dtype)
        self.up = Linear(c.width, c.ffn_width, c.dtype)
        self.down = Linear(c.ffn_width, c.width, c.dtype)

    def __call__(self, x_BSD, visible, cos_BSE, sin_BSE, kind: str, queries: tuple[int, int]):
        """The output at some slots [B, T, D], and the keys and values [B, K, S, E] of all.

        Args:
          visible, kind: as `attention.visibility` gives it, for that kernel.
          queries: the first slot that is queried, and T (static).
        """
        B, S, D = x_BSD.shape
        first, T = queries
        rope = cos_BSE.reshape(B * S, -1), sin_BSE.reshape(B * S, -1)
        normed_ND = self.attn_norm(x_BSD.reshape(B * S, D))
        k_NKE, v_NKE = self._keys_values(normed_ND, *rope)
        k_BKSE, v_BKSE = _heads_first(k_NKE, B), _heads_first(v_NKE, B)

        def queried(x):
            return x.reshape(B, S, -1)[:, first : first + T].reshape(B * T, -1) if T < S else x

        c = self.config
        q_NHE = self._queries(queried(normed_ND), *map(queried, rope))
        q_BKMTE = _heads_first(q_NHE, B).reshape(B, c.kv_heads, -1, T, c.head_dim)
        q_BKMTE, k_BKSE, v_BKSE = (constrain(x, ROWS, "tensor") for x in (q_BKMTE, k_BKSE, v_BKSE))
        out = attention.attend(kind, q_BKMTE, k_BKSE, v_BKSE, visible, first, c.dtype)
        out_BTHE = out.reshape(B, -1, T, c.head_dim).transpose(0, 2, 1, 3)
        x_ND = queried(x_BSD.reshape(B * S, D)) + self.o(out_BTHE.reshape(B * T, -1))
        return self._mlp(x_ND).reshape(B, T, D), (k_BKSE, v_BKSE)

    def step(self, x_BD, cache, bias_BS, slot, cos_BE, sin_BE):
        """The output for one new token a row, and the cache with its key and value at `slot`."""
        B, c = x_BD.shape[0], self.config
        normed_BD = self.attn_norm(x_BD)
        k_BKE, v_BKE = (x.astype(c.dtype) for x in self._keys_values(normed_BD, cos_BE, sin_BE))
        write = jax.lax.dynamic_update_slice_in_dim
        k_BKES = write(cache[0], k_BKE[:, :, :, None], slot, axis=3)
        v_BKSE = write(cache[1], v_BKE[:, :, None], slot, axis=2)
        q_BKME = self._queries(normed_BD, cos_BE, sin_BE).reshape(B, c.kv_heads, -1, c.head_dim)
        out_BKME = attention_step(q_BKME, k_BKES, v_BKSE, bias_BS, c.dtype)
        return self._mlp(x_BD + self.o(out_BKME.reshape(B, -1))), (k_BKES, v_BKSE)

    def _queries(self, x_ND, cos_NE, sin_NE):
        c = self.config
        q_NHE = self.q(x_ND).reshape(-1, c.heads, c.head_dim)
        q_NHE = self.q_norm(q_NHE) if c.qk_norm else q_NHE
        return _rotate(q_NHE, cos_NE, sin_NE) * c.head_dim**-0.5

    def _keys_values(self, x_ND, cos_NE, sin_NE):
        c = self.config
        k_NKE, v_NKE = (f(x_ND).reshape(-1, c.kv_heads, c.head_dim) for f in (self.k, self.v))
        k_NKE = self.k_norm(k_NKE) if c.qk_norm else k_NKE
        return _rotate(k_NKE, cos_NE, sin_NE), v_NKE

    def _mlp(self, x_ND):
        normed_ND = self.mlp_norm(x_ND)
        return x_ND + self.down(jax.nn.silu(self.gate(normed_ND)) * self.up(normed_ND))


def _heads_first(x_NHE, B):
    """[B * T, H, E] -> [B, H, T, E]."""
    return x_NHE.reshape(B, -1, *x_NHE.shape[1:]).transpose(0, 2, 1, 3)


class Decoder(nn.Module):
    """A causal language model (`head` "lm") or a critic with the same body (`head` "value").

    Inputs are tokens_BS, positions_BS (0 at a row's first real token) and mask_BS (nonzero at real
    tokens), with padding anywhere: a slot sees itself and the real slots before it. Outputs at
    padding are finite and mean nothing.
    """

    config: DecoderConfig
    head: str = "lm"

    def setup(self):
        """As of `Layer`; the head is "lm", tied or of its own, or "value"."""
        c = self.config
        self.embed = Embedding(c.vocab_size, c.width, c.dtype)
        self.layers = [Layer(c) for _ in range(c.layers)]
        self.final_norm = Norm(c.width, c.norm_eps)
        if self.head == "value":
            zeros = nn.initializers.zeros
            self.value_head = Linear(c.width, 1, c.dtype, use_bias=True, initializer=zeros)
        elif not c.tied_embeddings:
            self.lm_head = Linear(c.width, c.vocab_size, c.dtype)

    def __call__(self, tokens_BS, positions_BS, mask_BS) -> jax.Array:
        """Logits [B, S, V] (head "lm") or values [B, S] (head "value"), float32."""
        return self.project(self.hidden(tokens_BS, positions_BS, mask_BS))

    def hidden(self, tokens_BS, positions_BS, mask_BS, last: int | None = None) -> jax.Array:
        """Outputs of the final norm at the last `last` slots (static; None: all S), [B, T, D].

        The last layer then computes queries and MLP for those slots alone, unless it is scanned.
        """
        return self._run(tokens_BS, positions_BS, mask_BS, last)[0]

    def project(self, x_BTD) -> jax.Array:
        """Final-norm outputs -> logits [B, T, V] (head "lm") or values [B, T] (head "value")."""
        B, T, D = x_BTD.shape
        x_ND = x_BTD.reshape(B * T, D)
        if self.head == "value":
            return self.value_head(x_ND).reshape(B, T)
        tied = self.config.tied_embeddings
        logits_NV = self.embed.logits(x_ND) if tied else self.lm_head(x_ND)
        return constrain(logits_NV.reshape(B, T, -1), ROWS, None, "tensor")

    def head_weights(self) -> jax.Array:
        """The projection [D, V] of `project` (head "lm")."""
        return self.embed.embedding.T if self.config.tied_embeddings else self.lm_head.kernel

    def prefill(self, tokens_QP, positions_QP, mask_QP) -> tuple[jax.Array, Cache]:
        """Output of the final norm at the last slot [Q, D], and the cache of all P slots."""
        x_Q1D, cache = self._run(tokens_QP, positions_QP, mask_QP, last=1, keep=True)
        cache = jax.tree.map(lambda x: x.astype(self.config.dtype), cache)
        return x_Q1D[:, 0], tuple((k_QKPE.swapaxes(2, 3), v_QKPE) for k_QKPE, v_QKPE in cache)

    def decode(self, tokens_B, positions_B, cache, seen_BS, slot) -> tuple[jax.Array, Cache]:
        """Output of the final norm [B, D] for one new token a row, and the cache with it at `slot`.

        `seen_BS` is true at the slots of the cache that the row's token sees, `slot` among them.
        """
        bias_BS = jnp.where(seen_BS, 0.0, attention.MASKED)
        rope = self._rope(positions_B)
        x_BD, new = self.embed(tokens_B), []
        for layer, old in zip(self.layers, cache, strict=True):
            x_BD, layer_cache = layer.step(constrain(x_BD, ROWS), old, bias_BS, slot, *rope)
            new.append(layer_cache)
        return self.final_norm(x_BD), tuple(new)

    def _run(self, tokens_BS, positions_BS, mask_BS, last, keep: bool = False):
        """Final-norm outputs at the last `last` slots, and all keys and values if kept."""
        B, S = tokens_BS.shape
        kind = attention.for_slots(self.config.execution.attention, S)
        padding = attention.padded_slots(kind, S) - S
        if padding:
            behind = ((0, 0), (0, padding))
            tokens_BS, positions_BS, mask_BS = (
                jnp.pad(x, behind) for x in (tokens_BS, positions_BS, mask_BS)
            )
        queried = S if last is None else last
        visible, rope = attention.visibility(kind, mask_BS), self._rope(positions_BS)
        x_BSD = self.embed(tokens_BS.reshape(-1)).reshape(B, S + padding, -1)
        every = {"visible": visible, "cos_BSE": rope[0], "sin_BSE": rope[1], "kind": kind}
        whole, last_slots = (0, S + padding), (S - queried, queried)
        run = self._unrolled if self._is_plain() else self._recomputed
        x_BTD, cache = run(x_BSD, every, whole, last_slots, keep)
        return self.final_norm(x_BTD), cache

    def _is_plain(self) -> bool:
        execution = self.config.execution
        return self.is_initializing() or not (execution.scan_layers or execution.remat)

    def _unrolled(self, x_BSD, every, whole, last, keep):
        cache = []
        for layer in self.layers[:-1]:
            x_BSD, layer_cache = layer(constrain(x_BSD, ROWS), queries=whole, **every)
            cache.append(layer_cache)
        x_BTD, layer_cache = self.layers[-1](constrain(x_BSD, ROWS), queries=last, **every)
        return x_BTD, (*cache, layer_cache) if keep else None

    def _recomputed(self, x_BSD, every, whole, last, keep):
        """`_unrolled` with layers rematerialised, scanned or both, over the same parameters."""
        execution, kind = self.config.execution, every.pop("kind")
        params = [layer.variables["params"] for layer in self.layers]

        def block(queries, x_BSD, params, every):
            layer = Layer(self.config, parent=None)
            options = {"kind": kind, "queries": queries}
            x_BTD, cache = layer.apply({"params": params}, x_BSD, **every, **options)
            return sharding.constrain(x_BTD, *sharding.STREAM), cache if keep else None

        def run(queries):
            function = functools.partial(block, queries)
            # In a scan nothing can be merged with the forward pass, and the barriers would cost.
            apart = not execution.scan_layers
            return jax.checkpoint(function, prevent_cse=apart) if execution.remat else function

        x_BSD = sharding.constrain(x_BSD, *sharding.STREAM)
        if execution.scan_layers:
            # The last layer too runs on all slots: one body to compile is worth more.
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
            stacked = sharding.by_rules(stacked)
            x_BSD, caches = jax.lax.scan(lambda x, p: run(whole)(x, p, every), x_BSD, stacked)
            indices = range(len(params)) if keep else ()
            cache = [jax.tree.map(lambda leaf, i=i: leaf[i], caches) for i in indices]
            first, T = last
            return x_BSD[:, first : first + T], tuple(cache) if keep else None
        cache = []
        for own in params[:-1]:
            x_BSD, layer_cache = run(whole)(x_BSD, own, every)
            cache.append(layer_cache)
        x_BTD, layer_cache = run(last)(x_BSD, params[-1], every)
        return x_BTD, (*cache, layer_cache) if keep else None

    def _rope(self, positions):
        angle = positions.astype(jnp.float32)[..., None] * rope_frequencies(self.config).reshape(
            (1,) * positions.ndim + (-1,)
        )
        return jnp.cos(angle), jnp.sin(angle)
