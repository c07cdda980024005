"""TRL's side of `experiments.beside_trl`; runs in an environment of its own (torch, trl).

    python -P beside_trl_peer.py SPEC.json OUT.json

SPEC has a model directory, problems as rendered prompts with their token ids and answers, and the
settings of GRPO. Written are the mean reward and the seconds of each RL step, every completion with
its reward, and the model after some of the steps.
"""

import json
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

BOX, TAG = re.compile(r"\\boxed\{([^{}]*)\}"), re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def answered(completion: str) -> str | None:
    """The last \\boxed{} or, without one, the last <answer>; without spaces around."""
    found = BOX.findall(completion) or TAG.findall(completion)
    return found[-1].strip() if found else None


def train(spec: dict) -> dict:
    """One run of GRPOTrainer; {"rewards", "seconds"} by RL step, and the versions."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOTrainer

    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(spec["threads"])
    out, updates = Path(spec["out"]), spec["batch_size"] // spec["mini_batch_size"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(spec["model"], padding_side="left")
    for text, ids in zip(spec["prompts"], spec["ids"], strict=True):
        if tokenizer(text)["input_ids"] != ids:
            raise SystemExit(f"{text!r} has other tokens here than there")
    rewards: list[float] = []
    seconds: list[float] = []
    record = (out / "completions.jsonl").open("w")

    def reward(prompts: list[str], completions: list[str], answer: list[str], **_) -> list[float]:
        found = [
            float(answered(said) == right) for said, right in zip(completions, answer, strict=True)
        ]
        for prompt, said, right, worth in zip(prompts, completions, answer, found, strict=True):
            row = {"prompt": prompt, "completion": said, "answer": right, "reward": worth}
            record.write(json.dumps(row) + "\n")
        rewards.append(sum(found) / len(found))
        return found

    class Steps(TrainerCallback):
        def on_train_begin(self, *_, **__) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **_) -> None:
            if state.global_step % updates == 0:
                seconds.append(time.perf_counter() - self.begin)
                if state.global_step // updates in spec["save_at"]:
                    name = out / f"step{state.global_step // updates}"
                    trainer.model.save_pretrained(name)
                    tokenizer.save_pretrained(name)
                self.begin = time.perf_counter()

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32),
        reward_funcs=reward,
        args=_settings(spec, updates, torch.cuda.is_available()),
        train_dataset=Dataset.from_dict({"prompt": spec["prompts"], "answer": spec["answers"]}),
        processing_class=tokenizer,
        callbacks=[Steps()],
    )
    trainer.train()
    record.close()
    versions = {"torch": torch.__version__, "trl": trl.__version__}
    versions["transformers"] = transformers.__version__
    return {"rewards": rewards, "seconds": seconds, "versions": versions}


def _settings(spec: dict, updates: int, gpu: bool) -> Any:
    """The trainer's, of GRPO with so many optimizer steps an RL step."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(Path(spec["out"]) / "trainer"),
        max_steps=spec["steps"] * updates,
        per_device_train_batch_size=spec["mini_batch_size"],
        gradient_accumulation_steps=1,
        steps_per_generation=updates,
        num_iterations=1,
        num_generations=spec["group_size"],
        max_completion_length=spec["response_tokens"],
        temperature=spec["temperature"],
        beta=spec["kl_coef"],
        use_bias_correction_kl=spec["kl_weighted"],
        entropy_coef=spec["entropy_coef"],
        epsilon=spec["clip"],
        epsilon_high=spec["clip_high"],
        mask_truncated_completions=spec["mask_truncated"],
        loss_type="bnpo",  # the mean over a mini-batch's tokens
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=spec["grad_clip"],
        bf16=False,
        use_cpu=not gpu,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=spec["seed"],
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(train(json.loads(Path(sys.argv[1]).read_text()))))
