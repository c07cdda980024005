"""What weights in 8 bits cost and save (memory.frozen_dtype=int8), on any model directory.

    python -m experiments.int8 --model=models/SmolLM2-135M-Instruct --data=gsm8k_test.jsonl

The model answers the first problems of a file at temperature 1; at every token that it wrote its
distribution p is set against q, that of the same model with the layers' matrices in int8 and a
scale a column: KL(p || q) in nats, how often both have the same likeliest token, and the ratio
q / p of the token itself, which an importance weight would take for drift.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import main
from remix_jax import streams
from remix_jax.config import Data
from remix_jax.data import tasks
from remix_jax.models import huggingface, lora
from remix_jax.models.decoder import Decoder
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.models.sampling import Prompts, SamplerSettings, Task
from remix_jax.rollout import sampler
from remix_jax.rollout.rollouts import prompt_batch
from remix_jax.text import size_text

PROMPT_TOKENS, ROWS = 256, 8  # rows of a pass


def measure() -> None:
    """The measurement behind the flags."""
    model, params = huggingface.load(str(MODEL.value))
    vocabulary = load_vocabulary(str(MODEL.value))
    data = Data(prompt_tokens=PROMPT_TOKENS, instruction=INSTRUCTION.value)
    found = tasks.load_set(str(DATA.value), data, vocabulary.tokenizer, limit=PROBLEMS.value)
    count, T = len(found.prompts), TOKENS.value
    ends = vocabulary.eos_ids, vocabulary.pad_id
    task = Task(count, PROMPT_TOKENS, 1, T, SamplerSettings(1.0), *ends)
    number_B = np.arange(count, dtype=np.int32)
    prompts = prompt_batch(found.prompts, count, PROMPT_TOKENS, vocabulary.pad_id)
    given = Prompts(*prompts, number_B, np.ones(count, bool))
    drawn = sampler.compiled(model, task)(params, given, streams.key(0, "sampling"))

    coarse = lora.quantized(dict(params))
    execution = dataclasses.replace(model.config.execution, frozen_dtype=lora.INT8)
    other = Decoder(dataclasses.replace(model.config, execution=execution))

    @jax.jit
    def compared(params, coarse, tokens_BS, length_B):
        """KL, agreement and log ratio at the response's tokens [B, T]."""
        slot_1S = jnp.arange(PROMPT_TOKENS + T)[None]
        real_BS = (slot_1S >= PROMPT_TOKENS - length_B[:, None]).astype(jnp.int32)
        places_BS = jnp.maximum(jnp.cumsum(real_BS, axis=1) - 1, 0)
        p, q = (
            jax.nn.log_softmax(
                each.apply({"params": own}, tokens_BS, places_BS, real_BS)[:, -T - 1 : -1]
            )
            for each, own in ((model, params), (other, coarse))
        )
        token_BT1 = tokens_BS[:, PROMPT_TOKENS:, None]
        ratio = jnp.take_along_axis(q - p, token_BT1, axis=-1)[..., 0]
        return (jnp.exp(p) * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1), ratio

    parts = []
    for begin in range(0, count, ROWS):
        rows = np.minimum(np.arange(begin, begin + ROWS), count - 1)
        of_rows = (jnp.asarray(x)[rows] for x in (drawn.tokens_BS, drawn.prompt_len_B))
        wrote = np.asarray(drawn.loss_mask_BT)[rows] > 0
        wrote[count - begin :] = False
        parts.append([np.asarray(x)[wrote] for x in compared(params, coarse, *of_rows)])
    kl, same, ratio = (np.concatenate(each) for each in zip(*parts, strict=True))
    low, high = np.percentile(np.exp(ratio), (1, 99))
    print(f"{MODEL.value}: {len(kl):,} tokens of {count} responses, in float32")
    print(f"KL(p || q) a token: mean {kl.mean():.2g} nats, 99 % below {np.percentile(kl, 99):.2g}")
    print(f"the same likeliest token: {same.mean():.2%}")
    print(f"q / p of the token that was drawn: 98 % in [{low:.3f}, {high:.3f}]")
    print(f"weights: {_size(params)} in bfloat16, {_size(coarse)} with int8 in the layers")


def _size(params: dict) -> str:
    """Of weights in bfloat16 but for those in int8, whose scales are float32."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    own = (x.dtype == jnp.int8 or path[-1].key == "kernel_scale" for path, x in leaves)
    sizes = zip((x for _, x in leaves), own, strict=True)
    return size_text(sum(x.size * (x.dtype.itemsize if kept else 2) for x, kept in sizes))


if __name__ == "__main__":
    MODEL = flags.DEFINE_string("model", None, "a Hugging Face model directory")
    DATA = flags.DEFINE_string("data", None, "problems to answer (docs/tasks.md)")
    INSTRUCTION = flags.DEFINE_string("instruction", "", "appended to each problem")
    PROBLEMS = flags.DEFINE_integer("problems", 64, "how many of them", lower_bound=1)
    TOKENS = flags.DEFINE_integer("tokens", 64, "of a response at most", lower_bound=1)
    main.run(measure, required=("model", "data"))
