"""The peer side of the benchmark: TRL's GRPOTrainer and torch `generate`, on the CPU.

Runs as a script inside an environment of its own (torch, transformers, trl) and imports nothing of
remix_jax, so that neither library can slow the other down:

    python -P benchmark_peers.py SPEC.json OUT.json

SPEC names the task, "make-model" or "measure". The problem itself (`Size`, `prompt_texts`) and the
clock (`LapClock`) are defined here, free of third-party imports, because both sides share them.

The trainer is set up as a user who wants speed on this machine would: float32, key/value cache, no
gradient checkpointing, no logging, no saving, no progress bar, the fused AdamW. What it does by
itself in this configuration is kept: four optimizer steps per generation make it score the
completions under the policy (the "old" log-probabilities) as well as under the reference model.
"""

import dataclasses
import json
import os
import platform
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = ("generate", "old", "reference", "update", "other")


@dataclasses.dataclass(frozen=True)
class Size:
    """One RL step's problem: shape of the Qwen2 model, and counts of rows, tokens, mini-batches."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn_width: int
    vocab_size: int
    prompt_len: int
    response_len: int
    rows: int
    group_size: int
    mini_batches: int

    @property
    def prompts(self) -> int:
        """Number of different prompts, Q = B / G."""
        return self.rows // self.group_size

    @property
    def tokens(self) -> int:
        """Tokens generated in a step: every response runs to its full length."""
        return self.rows * self.response_len


def prompt_texts(size: Size) -> list[str]:
    """The Q prompts of a step, words of the tokenizer that `make_model` writes, one token each."""
    draw = random.Random(0)
    words = [f"w{i}" for i in range(size.vocab_size - 3)]
    return [" ".join(draw.choices(words, k=size.prompt_len)) for _ in range(size.prompts)]


class LapClock:
    """Seconds of the process by phase; every moment is charged to exactly one phase.

    `switch(phase)` ends the running phase and starts the next; `take()` returns and clears
    {phase: (wall seconds, CPU-seconds of all threads)}, which add up to all that passed.
    """

    def __init__(self) -> None:
        self.phase = "other"
        self.laps: dict[str, tuple[float, float]] = {}
        self._last = (time.perf_counter(), time.process_time())

    def switch(self, phase: str) -> str:
        """Charge the time since the last switch to the running phase; return that phase's name."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = self.laps.get(self.phase, (0.0, 0.0))
        self.laps[self.phase] = (wall + now[0] - self._last[0], cpu + now[1] - self._last[1])
        ended, self.phase, self._last = self.phase, phase, now
        return ended

    def take(self) -> dict[str, tuple[float, float]]:
        self.switch(self.phase)
        laps, self.laps = self.laps, {}
        return laps


def pin(threads: int) -> None:
    """Keep the process on its first `threads` cores; call it before the numerical library loads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def peak_memory_mib() -> float:
    """Largest resident size of this process so far, in MiB (ru_maxrss counts KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_model(size: Size, directory: Path, seed: int = 0) -> int:
    """Write a random Qwen2 model with a tokenizer of words; return its parameter count."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = ["<pad>", "<eos>", "<unk>"] + [f"w{i}" for i in range(size.vocab_size - 3)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = Qwen2Config(
        vocab_size=size.vocab_size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        intermediate_size=size.ffn_width,
        max_position_embeddings=2 * (size.prompt_len + size.response_len),
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).float()
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(directory)
    fast.save_pretrained(directory)
    return sum(p.numel() for p in model.parameters())


def measure_generate(model_dir: Path, size: Size, repeats: int) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of torch `generate` alone: all rows at once, every row at full length."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    prompts = [text for text in prompt_texts(size) for _ in range(size.group_size)]
    inputs = tokenizer(prompts, return_tensors="pt", return_token_type_ids=False)
    clock = LapClock()
    laps = []
    for turn in range(repeats + 1):
        clock.take()
        with torch.no_grad():
            tokens = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=size.response_len,
                min_new_tokens=size.response_len,
            )
        lap = clock.take()["other"]
        assert tokens.shape == (size.rows, size.prompt_len + size.response_len), tokens.shape
        if turn:  # the first call warms the allocator and the kernels up
            laps.append(lap)
    return laps


def measure_grpo(
    model_dir: Path, size: Size, warmup: int, steps: int
) -> list[dict[str, tuple[float, float]]]:
    """(wall, CPU) seconds by phase of each RL step of TRL's GRPOTrainer, after `warmup` steps."""
    trainer, records = _timed_trainer(model_dir, size, (warmup + steps) * size.mini_batches)
    trainer.train()
    assert len(records) == warmup + steps, f"{len(records)} RL steps measured"
    return records[warmup:]


def _reward(completions: list[str], **_: Any) -> list[float]:
    """A reward that costs nothing and differs within a group, so that gradients are not zero."""
    return [float(len(text) % 7) for text in completions]


def _timed_trainer(model_dir: Path, size: Size, optimizer_steps: int) -> tuple[Any, list]:
    """A GRPOTrainer whose phases are charged to a clock, and the list its RL steps will fill."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOTrainer

    clock = LapClock()
    records: list[dict[str, tuple[float, float]]] = []

    def charged(phase: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outer = clock.switch(phase)
        try:
            return function(*args, **kwargs)
        finally:
            clock.switch(outer)

    class TimedTrainer(GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            out = charged("generate", super()._generate_single_turn, *args, **kwargs)
            lengths = {len(ids) for ids in out[0]}
            assert lengths == {size.response_len}, f"responses of {sorted(lengths)} tokens"
            return out

        def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            score = super()._get_per_token_logps_and_entropies
            if torch.is_grad_enabled():
                return score(model, *args, **kwargs)
            phase = "reference" if model is self.ref_model else "old"
            return charged(phase, score, model, *args, **kwargs)

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            return charged("other", super()._generate_and_score_completions, *args, **kwargs)

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            clock.switch("update")  # until the optimizer's step has been taken
            return super().training_step(*args, **kwargs)

    class Laps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.take()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            clock.switch("other")

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % size.mini_batches == 0:
                records.append(clock.take())

    trainer = TimedTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        reward_funcs=_reward,
        args=_grpo_config(model_dir, size, optimizer_steps),
        train_dataset=Dataset.from_dict({"prompt": prompt_texts(size)}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(model_dir),
        callbacks=[Laps()],
    )
    return trainer, records


def _grpo_config(model_dir: Path, size: Size, optimizer_steps: int) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(model_dir / "trl-output"),
        max_steps=optimizer_steps,
        per_device_train_batch_size=size.rows // size.mini_batches,
        gradient_accumulation_steps=1,
        steps_per_generation=size.mini_batches,
        num_iterations=1,
        num_generations=size.group_size,
        max_completion_length=size.response_len,
        generation_kwargs={"min_new_tokens": size.response_len},
        temperature=1.0,
        beta=0.04,
        epsilon=0.2,
        loss_type="dapo",  # token mean, as on the other side
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Run both measurements of one worker process and say under what they were taken."""
    pin(spec["threads"])
    import torch
    import transformers
    import trl

    torch.set_num_threads(spec["threads"])
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    size, model_dir = Size(**spec["size"]), Path(spec["model"])
    load_before = os.getloadavg()
    decode = measure_generate(model_dir, size, spec["decodes"])
    steps = measure_grpo(model_dir, size, spec["warmup"], spec["steps"])
    return {
        "decode": decode,
        "steps": steps,
        "load": [load_before[0], os.getloadavg()[0]],
        "peak_memory_mib": peak_memory_mib(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
        },
    }


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["task"] == "make-model":
        count = make_model(Size(**spec["size"]), Path(spec["model"]))
        result: dict[str, Any] = {"parameters": count}
    else:
        result = measure(spec)
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
