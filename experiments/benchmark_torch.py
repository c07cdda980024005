"""The torch side of `experiments.benchmark_accelerator`; runs in an environment of its own.

    python -P benchmark_torch.py SPEC.json OUT.json

A random model of the given config.json: `generate` at full length, then one pass of next-token loss
and gradient over rows of prompt and response, with gradient checkpointing, in micro-batches.
"""

import json
import platform
import sys
import time
from pathlib import Path


def measure(spec: dict) -> dict:
    """Seconds of each repeat, after one to warm up."""
    import torch
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = AutoConfig.from_pretrained(spec["model"])
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    torch.manual_seed(0)
    rows, prompt, response = spec["rows"], spec["prompt"], spec["response"]

    def timed(function) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    ids = torch.randint(1, config.vocab_size, (rows, prompt), device=device)

    def generate():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=response,
            max_new_tokens=response,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )

    decode = [timed(generate) for _ in range(spec["repeats"] + 1)][1:]
    model.train()
    model.gradient_checkpointing_enable()
    text = torch.randint(1, config.vocab_size, (rows, prompt + response), device=device)

    def learn():
        model.zero_grad(set_to_none=True)
        for part in text.split(spec["micro"]):
            model(input_ids=part, labels=part).loss.backward()

    learn_seconds = [timed(learn) for _ in range(spec["repeats"] + 1)][1:]
    return {
        "decode": decode,
        "learn": learn_seconds,
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(measure(json.loads(Path(sys.argv[1]).read_text()))))
