"""The remix_jax side of the benchmark: the programs and the host's work of a real run, timed.

    python -m experiments.benchmark_remix SPEC.json OUT.json

GRPO as a config of the one learner: no replay, one pass of four mini-batches, KL to the base model.
A step is what `remix_jax.run.loop` makes of it: sample, decode to text and grade, learn. The
learner scores the fresh rows under the base model inside its one program; for the table that part
is measured by itself, right after the step and outside it, and taken off the program's time.
"""

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.benchmark_peers import LapClock, Size, peak_memory_mib, pin, prompt_texts

if TYPE_CHECKING:
    from remix_jax.config import Config

Laps = dict[str, tuple[float, float]]


def grpo_config(model_dir: str, size: Size) -> "Config":
    """The same step as the peer's: loss, optimizer, clipping, KL, mini-batches."""
    from remix_jax import config as c

    mini_batch = size.rows // size.mini_batches
    return c.Config(
        batch_size=size.rows,
        group_size=size.group_size,
        mini_batch_size=mini_batch,
        micro_batch_size=mini_batch,
        score_batch_size=mini_batch,
        passes=1,
        reincarnation_step=0,
        model=c.Model(path=model_dir),
        data=c.Data(prompt_tokens=size.prompt_len, response_tokens=size.response_len),
        replay=c.Replay(share=0.0, window=1),
        kl=c.KL(coef=0.04, convex=False),
        objective=c.Objective(advantage="group_normalized", entropy_coef=0.0),
        optimizer=c.Optimizer(learning_rate=1e-5),
        evaluation=c.Evaluation(batch_size=size.group_size),
    )


class Run:
    """The state of the steps being measured."""

    def __init__(self, model_dir: str, size: Size) -> None:
        import jax

        from remix_jax.data.problems import Problem
        from remix_jax.learner.state import init_state, make_learner
        from remix_jax.learner.step import compile_learn, step_inputs
        from remix_jax.models import huggingface
        from remix_jax.models.hf_tokenizer import load_vocabulary
        from remix_jax.rewards import Scorer
        from remix_jax.rollout import sampler
        from remix_jax.rollout.rollouts import prompt_batch
        from remix_jax.schedule import stage_at, stages

        self.size, self.clock = size, LapClock()
        self.vocabulary, self.scorer = load_vocabulary(model_dir), Scorer()
        policy, params = huggingface.load(model_dir)
        config = grpo_config(model_dir, size)
        self.learner = make_learner(config, policy)
        self.inputs = step_inputs(config, 1)
        self.state = init_state(self.learner, params, config.seed)
        begin = time.perf_counter()
        # An id that no token has: every response runs to its full length, as on the other side.
        end_ids = (size.vocab_size,)
        stage = stages(config)[stage_at(config, 1)]
        task = sampler.rollout_task(config, stage, end_ids, self.vocabulary.pad_id)
        self.sampler = sampler.make(config, policy, task)
        self.learn_program = compile_learn(self.learner, stage, None).call
        self.compile_seconds = time.perf_counter() - begin
        self.score_chunk = jax.jit(self._score_chunk)
        texts = prompt_texts(size)
        self.problems = [
            Problem(problem=text, answers=("0",), id=str(i)) for i, text in enumerate(texts)
        ]
        ids = self.vocabulary.tokenizer(texts)["input_ids"]
        assert {len(prompt) for prompt in ids} == {size.prompt_len}, "prompts of another length"
        self.prompt_ids = ids
        self.prompts = prompt_batch(ids, size.prompts, size.prompt_len, self.vocabulary.pad_id)

    def sample(self, step: int) -> Any:
        """Responses to the prompts, under the current policy."""
        import jax
        import numpy as np

        from remix_jax.rollout.sampler import Prompts

        row_B = np.arange(self.size.rows, dtype=np.int32)
        tokens_QP, length_Q = self.prompts
        prompts = Prompts(tokens_QP, length_Q, row_B, np.ones(self.size.rows, bool))
        key = jax.random.fold_in(jax.random.key(1), step)
        return jax.block_until_ready(self.sampler(self.state.params, prompts, key))

    def step(self, number: int) -> Laps:
        """(wall, CPU) seconds by phase of one RL step."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from remix_jax.rollout.draws import Draw
        from remix_jax.rollout.rollouts import grade_rollouts

        self.clock.take()
        self.clock.switch("generate")
        sampled = self.sample(number)
        self.clock.switch("other")
        begin = number * self.size.prompts
        rollouts: Any = grade_rollouts(
            sampled,
            Draw(self.problems, self.prompt_ids, [None] * self.size.prompts, begin),
            self.vocabulary,
            self.size.group_size,
            self.scorer,
        )
        assert rollouts.metrics["response_length"] == self.size.response_len
        # The grader finds no answer in random words; rewards that differ make the gradient real.
        reward_B = np.array([len(x["response"]) % 7 for x in rollouts.samples], np.float32)
        rows = rollouts.rows.replace(reward_B=jnp.asarray(reward_B))
        self.clock.switch("update")
        self.state, metrics = self.learn_program(self.state, rows, self.inputs, None)
        jax.block_until_ready((self.state, metrics))
        self.clock.switch("other")
        laps = self.clock.take()
        assert float(metrics["grad_norm"]) > 0
        return self._part_reference(laps, rows)

    def _part_reference(self, laps: Laps, rows: Any) -> Laps:
        """The laps with the reference's share of the learning program's time set apart."""
        import jax

        self.clock.take()
        chunk = self.learner.static.score_batch_size
        for first in range(0, self.size.rows, chunk):
            part = jax.tree.map(lambda x, first=first: x[first : first + chunk], rows)
            jax.block_until_ready(self.score_chunk(self.state.base_params, part))
        reference = self.clock.take()["other"]
        wall, cpu = laps["update"]
        update = (max(wall - reference[0], 0.0), max(cpu - reference[1], 0.0))
        return laps | {"update": update, "reference": (wall - update[0], cpu - update[1])}

    def _score_chunk(self, params: dict, rows: Any) -> Any:
        from remix_jax.models import packing, scoring

        held = packing.alone(rows)
        return scoring.score_responses(self.learner.policy, params, held, temperature=1.0).logp_BT

    def decode(self, repeats: int) -> list[tuple[float, float]]:
        """(wall, CPU) seconds of generation alone."""
        laps = []
        for turn in range(repeats + 1):
            self.clock.take()
            self.sample(turn)
            lap = self.clock.take()["other"]
            if turn:  # the first call warms the allocator up
                laps.append(lap)
        return laps


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Run both measurements of one worker process and say under what they were taken."""
    pin(spec["threads"])
    load_before = os.getloadavg()
    import flax
    import jax
    import jaxlib
    import optax

    run = Run(spec["model"], Size(**spec["size"]))
    decode = run.decode(spec["decodes"])
    steps = [run.step(number) for number in range(spec["warmup"] + spec["steps"])]
    return {
        "decode": decode,
        "steps": steps[spec["warmup"] :],
        "load": [load_before[0], os.getloadavg()[0]],
        "peak_memory_mib": peak_memory_mib(),
        "compile_seconds": run.compile_seconds,
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        },
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(measure(spec)))


if __name__ == "__main__":
    main()
