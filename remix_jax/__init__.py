"""ReMix and PrefixRL in JAX: reinforcement finetuning that learns from its rollouts several times.

    import remix_jax
    outcome = remix_jax.train(config, "runs/mine")       # a remix_jax.Config
    figures = remix_jax.evaluate(config)                 # of config.model on config.data.suites
    model, params = remix_jax.load("runs/mine/export")   # a Hugging Face directory
    remix_jax.save(model, params, "copy", like="runs/mine/export")
    verdict = remix_jax.grade(r"so \\boxed{2}", "2")

docs/python.md is the tour. Names are imported when they are first used: the grader's processes load
this package as well, and need no JAX.
"""

from etils import epy as _epy

__all__ = ["Config", "InputError", "Item", "Sampler", "Score", "Scorer"]
__all__ += ["evaluate", "grade", "load", "save", "train"]

with _epy.lazy_api_imports(globals()):
    from math_grader import grade
    from remix_jax.config import Config
    from remix_jax.errors import InputError
    from remix_jax.evaluation import evaluate
    from remix_jax.models.huggingface import load, save
    from remix_jax.rewards import Item, Score, Scorer
    from remix_jax.rollout.sampler import Sampler
    from remix_jax.run.loop import run as train
