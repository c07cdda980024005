"""Fresh rows: `draws` chooses problems and prefixes, `sampler` is the interface of sampling
(docs/samplers.md), `rollouts` scores responses and makes rows of them and of an expert's traces.
"""

from remix_jax.models.hf_tokenizer import Vocabulary, load_vocabulary
from remix_jax.models.sampling import Sampled, SamplerSettings
from remix_jax.rollout.rollouts import prompt_batch, response_ids, texts_of
from remix_jax.rollout.sampler import Prompts, Sampler, Task, compiled

__all__ = ["Prompts", "Sampled", "Sampler", "SamplerSettings", "Task", "Vocabulary", "compiled"]
__all__ += ["load_vocabulary", "prompt_batch", "response_ids", "texts_of"]
