"""One decoder for Qwen2, Qwen3 and Llama 3: pre-norm blocks, rotary positions, grouped queries.

Everything is folded to two dimensions [rows * slots, width] before a matrix product, and attention
is a batched product over [rows, key heads] without repeating keys or values: on a CPU this is what
separates a backward pass equal to torch's from one twice as slow, and accelerators lose nothing.
Shape letters are those of `products`.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from remix_jax.models import attention
from remix_jax.models.lora import INT8, LEAVES, Lora
from remix_jax.models.products import lookup, matmul
from remix_jax.sharding import ROWS, STREAM, Places, by_rules, constrain, places

# Of every layer: keys [B, K, E, S] (the layout in which a CPU multiplies them without copying them
# first) and values [B, K, S, E].
Cache = tuple[tuple[jax.Array, jax.Array], ...]


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a decoder is run: results agree up to rounding. The defaults suit small models."""

    param_dtype: str = ""  # of the parameters; empty: that of the operands of products
    frozen_dtype: str = ""  # of the layers' matrices under adapters: "int8"; empty: as the others
    scan_layers: bool = False  # one layer compiled and looped over, in place of all unrolled
    remat: bool = False  # a layer keeps its input alone and runs again in the backward pass
    attention: str = "plain"  # kernel of rows and caches of `attention.LONG` slots or more
    logit_slots: int = 0  # slots of a row whose logits exist at once; 0: all
    logit_entries: int = 0  # entries of the vocabulary, likewise


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of rotary wavelengths beyond the pretraining context; HF's names."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


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
    lora: Lora | None = None  # None: no adapters
    execution: Execution = Execution()


def rope_angles(config: DecoderConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position * theta^(-2i/E), i < E / 2, in radians, float32 [..., E / 2].

    With Llama 3's scaling, a frequency that turns less than low_freq_factor times within the
    original context is divided by `factor`, one that turns more than high_freq_factor times is
    kept, and those between are interpolated linearly in their number of turns.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    frequency, scaling = config.rope_theta**-exponents, config.rope_scaling
    if scaling is not None:
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        turns = scaling.original_max_position_embeddings * frequency / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequency = frequency * (kept + (1.0 - kept) / scaling.factor)
    per_position = frequency.astype(np.float32).reshape((1,) * positions.ndim + (-1,))
    angle = positions.astype(jnp.float32)[..., None] * per_position
    return jnp.cos(angle), jnp.sin(angle)


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return x * inverse * scale


class Linear(nn.Module):
    """x @ kernel (+ bias) (+ adapter), operands in `dtype`, sums and result float32."""

    outputs: int
    dtype: str
    use_bias: bool = False
    initializer: nn.initializers.Initializer = nn.initializers.normal(0.02)
    lora: Lora | None = None
    kernel_dtype: str = ""  # "int8", with a scale a column

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        ints, zeros = self.kernel_dtype == INT8, nn.initializers.zeros
        has_a, has_b = (self.has_variable("params", name) for name in LEAVES)
        if has_a and not has_b:  # it lies under the kernel (`lora.under`)
            low_NR = matmul(x_ND, self.get_variable("params", LEAVES[0]), self.dtype)
            x_ND = jnp.concatenate([x_ND, low_NR], axis=1)
        given = (zeros, jnp.int8) if ints else (self.initializer, jnp.float32)
        y_NF = self._times(x_ND, "kernel", (x_ND.shape[1], self.outputs), *given)
        if ints:
            y_NF *= self.param("kernel_scale", zeros, (self.outputs,))[None]
        if self.use_bias:
            bias = self.param("bias", zeros, (self.outputs,))
            y_NF += bias.astype(jnp.float32)[None]
        # Of a layer that is applied alone the path is not the whole one.
        if self.lora and (self.lora.adapts(self.path) if self.is_initializing() else has_b):
            shapes = (x_ND.shape[1], self.lora.rank), (self.lora.rank, self.outputs)
            for name, shape in zip(LEAVES, shapes, strict=True):
                x_ND = self._times(x_ND, name, shape, zeros)
            y_NF += self.lora.scale * x_ND
        return y_NF

    def _times(self, x_ND, name, shape, initializer, dtype=jnp.float32):
        matrix = self.param(name, initializer, shape, dtype)
        return matmul(x_ND, matrix, self.dtype, places((*self.path, name), shape))


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
    """One block: x + attention(norm(x)), then x + MLP(norm(x)). Attributes name the parameters."""

    config: DecoderConfig

    def setup(self):
        """Flax's hook: attributes name the parameters."""
        c = self.config
        how = {"lora": c.lora, "kernel_dtype": c.execution.frozen_dtype}
        linear = functools.partial(Linear, dtype=c.dtype, **how)
        self.attn_norm, self.mlp_norm = Norm(c.norm_eps), Norm(c.norm_eps)
        self.q = linear(c.heads * c.head_dim, use_bias=c.qkv_bias)
        self.k = linear(c.kv_heads * c.head_dim, use_bias=c.qkv_bias)
        self.v = linear(c.kv_heads * c.head_dim, use_bias=c.qkv_bias)
        self.o = linear(c.width)
        if c.qk_norm:
            self.q_norm, self.k_norm = Norm(c.norm_eps), Norm(c.norm_eps)
        self.gate, self.up = linear(c.ffn_width), linear(c.ffn_width)
        self.down = linear(c.width)

    def __call__(self, x_BSD, visible, rope, kind: str, first: int, T: int):
        """The output at T slots from `first` on [B, T, D]; keys and values [B, K, S, E] of all.

        `visible` is what `attention.visibility` gives for that kind, `rope` cos and sin
        [B, S, E / 2] of the positions.
        """
        (B, S, D), c = x_BSD.shape, self.config
        rope = [x.reshape(B * S, -1) for x in rope]
        normed_ND = self.attn_norm(x_BSD.reshape(B * S, D))

        def heads_first(x):  # [B * T, H, E] -> [B, H, T, E]
            return x.reshape(B, -1, *x.shape[1:]).transpose(0, 2, 1, 3)

        def queried(x):
            return x.reshape(B, S, -1)[:, first : first + T].reshape(B * T, -1) if T < S else x

        k, v = map(heads_first, self._keys_values(normed_ND, *rope))
        q = heads_first(self._queries(queried(normed_ND), *map(queried, rope)))
        q = q.reshape(B, c.kv_heads, -1, T, c.head_dim)
        q_BKMTE, k_BKSE, v_BKSE = (constrain(x, ROWS, "tensor") for x in (q, k, v))
        out = attention.attend(kind, q_BKMTE, k_BKSE, v_BKSE, visible, first, c.dtype)
        out_BTHE = out.reshape(B, -1, T, c.head_dim).transpose(0, 2, 1, 3)
        x_ND = queried(x_BSD.reshape(B * S, D)) + self.o(out_BTHE.reshape(B * T, -1))
        return self._mlp(x_ND).reshape(B, T, D), (k_BKSE, v_BKSE)

    def step(self, x_ND, old, new, filled_N, bias_NC, slot, cos_NE, sin_NE):
        """The output for one new token a row, and `new` with its key and value at `slot`."""
        N, config = x_ND.shape[0], self.config
        normed_ND = self.attn_norm(x_ND)
        k_NKE, v_NKE = self._keys_values(normed_ND, cos_NE, sin_NE)
        q_NKME = self._queries(normed_ND, cos_NE, sin_NE)
        q_NKME = q_NKME.reshape(N, config.kv_heads, -1, config.head_dim)
        cache = old, new, filled_N, bias_NC, slot
        kind = config.execution.attention
        out_NKME, new = attention.step(kind, q_NKME, k_NKE, v_NKE, *cache, config.dtype)
        return self._mlp(x_ND + self.o(out_NKME.reshape(N, -1))), new

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


def _rotate(x_NHE: jax.Array, cos_NE: jax.Array, sin_NE: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + E / 2]) by their position's angles."""
    N, H, E = x_NHE.shape
    x = x_NHE.reshape(N, H, 2, E // 2)
    sign_2 = np.asarray([-1.0, 1.0], np.float32).reshape(1, 1, 2, 1)
    turned = x[:, :, ::-1] * sign_2 * sin_NE[:, None, None]
    return (x * cos_NE[:, None, None] + turned).reshape(N, H, E)


# Jitted, equal layers are traced and lowered once, in a model that is not scanned too.
@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _layer(config: DecoderConfig, layer, x_BSD, visible, rope, kind, first, T):
    return Layer(config, parent=None).apply(layer, x_BSD, visible, rope, kind, first, T)


@functools.partial(jax.jit, static_argnums=0)
def _step(config: DecoderConfig, layer, *given):
    return Layer(config, parent=None).apply(layer, *given, method="step")


class Decoder(nn.Module):
    """A causal language model (`head` "lm") or a critic with the same body (`head` "value").

    Inputs are tokens_BS, positions_BS (0 at a row's first real token) and segments_BS: a slot sees
    itself and those before it with its number. A mask is two segments, tokens and padding anywhere.
    Outputs at padding are finite and mean nothing.
    """

    config: DecoderConfig
    head: str = "lm"

    def setup(self):
        """Flax's hook: attributes name the parameters."""
        c = self.config
        self.embed = Embedding(c.vocab_size, c.width, c.dtype)
        self.layers = [Layer(c) for _ in range(c.layers)]
        self.final_norm = Norm(c.norm_eps)
        if self.head == "value":
            self.value_head = Linear(1, c.dtype, True, nn.initializers.zeros)
        elif not c.tied_embeddings:
            self.lm_head = Linear(c.vocab_size, c.dtype)

    def __call__(self, tokens_BS, positions_BS, segments_BS) -> jax.Array:
        """Logits [B, S, V] (head "lm") or values [B, S] (head "value"), float32."""
        return self.project(self.hidden(tokens_BS, positions_BS, segments_BS))

    def hidden(self, tokens_BS, positions_BS, segments_BS, last: int | None = None) -> jax.Array:
        """Outputs of the final norm at the last `last` slots (static; None: all S), [B, T, D].

        The last layer then computes queries and MLP for those slots alone, unless it is scanned.
        """
        return self._run(tokens_BS, positions_BS, segments_BS, last)[0]

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
        if self.config.tied_embeddings:
            return self.embed.embedding.T
        return self.lm_head.variables["params"]["kernel"]

    def prefill(self, tokens_QP, positions_QP, mask_QP, at_Q=None) -> tuple[jax.Array, Cache]:
        """The final norm's output at the slots `at_Q` (None: the last) [Q, D], and the cache.

        Rounded to what products read of it, here and in `decode`.
        """
        last = 1 if at_Q is None else None
        x_QTD, cache = self._run(tokens_QP, positions_QP, mask_QP, last, keep=True)
        x_QTD, cache = jax.tree.map(lambda x: x.astype(self.config.dtype), (x_QTD, cache))
        if at_Q is not None:
            x_QTD = jnp.take_along_axis(x_QTD, at_Q[:, None, None], axis=1)
        return x_QTD[:, 0], tuple((k_QKPE.swapaxes(2, 3), v_QKPE) for k_QKPE, v_QKPE in cache)

    def decode(
        self, tokens_N, positions_N, old, new, filled_N, seen_NC, slot
    ) -> tuple[jax.Array, Cache]:
        """Output of the final norm [N, D] for one new token a row, and `new` with it at `slot`.

        The cache may have two parts: `old`, which is only read, and of which a row's token sees the
        first `filled_N` slots; and `new`, which all rows fill at the same slots. So rows begin and
        end at any step, and yet no write is to a place of its own. A kernel that writes to such
        places (`attention.for_cache` is "cudnn") gets one cache, and the slots of the rows.

        Args:
          old: None where `new` is the whole cache; then so is `filled_N`.
          seen_NC: true where a row's token looks in `new` [N or 1, C], `slot` included; None with
            slots of their own, of which a row sees all up to there.
          slot: int32, of the new token, or of each row's [N].
        """
        bias_NC = None if seen_NC is None else jnp.where(seen_NC, 0.0, attention.MASKED)
        rope = rope_angles(self.config, positions_N)
        x_ND, written = self.embed(tokens_N), []
        before = old or [None] * len(new)
        for layer, older, newer in zip(self.layers, before, new, strict=True):
            given = constrain(x_ND, ROWS), older, newer, filled_N, bias_NC, slot, *rope
            x_ND, layer_cache = _step(self.config, layer.variables, *given)
            written.append(layer_cache)
        return self.final_norm(x_ND).astype(self.config.dtype), tuple(written)

    def _run(self, tokens_BS, positions_BS, segments_BS, last, keep: bool = False):
        """Final-norm outputs at the last `last` slots, and all keys and values if kept."""
        c, (B, S) = self.config, tokens_BS.shape
        execution = Execution() if self.is_initializing() else c.execution
        unrolled = not (execution.scan_layers or execution.remat)
        kind, slots = attention.for_slots(execution.attention, S)
        if slots > S:
            tokens_BS, positions_BS, segments_BS = (
                jnp.pad(x, ((0, 0), (0, slots - S))) for x in (tokens_BS, positions_BS, segments_BS)
            )
        T = S if last is None else last
        all_slots, last_slots = (0, slots), (S - T, T)
        visible, rope = attention.visibility(kind, segments_BS), rope_angles(c, positions_BS)

        def block(x_BSD, layer, queries):
            run = layer if self.is_initializing() else functools.partial(_layer, c, layer)
            x_BTD, cache = run(x_BSD, visible, rope, kind, *queries)
            return constrain(x_BTD, *between), cache if keep else None

        if execution.remat:
            # In a scan nothing can be merged with the forward pass, and the barriers would cost.
            apart = not execution.scan_layers
            block = jax.checkpoint(block, prevent_cse=apart, static_argnums=2)
        between = (ROWS,) if unrolled else STREAM
        x_BSD = constrain(self.embed(tokens_BS.reshape(-1)).reshape(B, slots, -1), *between)
        layers = self.layers
        if not self.is_initializing():
            layers = [layer.variables for layer in layers]
        if execution.scan_layers:
            # The last layer too runs on all slots: one body to compile is worth more.
            stacked = by_rules(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))
            x_BSD, kept = jax.lax.scan(lambda x, p: block(x, p, all_slots), x_BSD, stacked)
            x_BTD = x_BSD[:, S - T : S]
            cache = [jax.tree.map(lambda x, i=i: x[i], kept) for i in range(c.layers)]
        else:
            cache = []
            for layer in layers:
                queries = last_slots if layer is layers[-1] else all_slots
                x_BSD, keys_values = block(x_BSD, layer, queries)
                cache.append(keys_values)
            x_BTD = x_BSD
        return self.final_norm(x_BTD), tuple(cache)


@functools.cache
def abstract_params(model: Decoder) -> dict:
    """Shapes and dtypes of a model's parameters."""
    slot = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), slot, slot, slot)["params"]
    dtype = jnp.dtype(model.config.execution.param_dtype or model.config.dtype)

    def held(path, x):
        own = x.dtype == jnp.int8 or path[-1].key in (*LEAVES, "kernel_scale")
        return jax.ShapeDtypeStruct(x.shape, x.dtype if own else dtype)

    return jax.tree_util.tree_map_with_path(held, tree)
