"""One path through everything: real math problems, a BPE tokenizer, training, evaluation, torch."""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from experiments.benchmark_sets import BENCHMARKS, locate
from experiments.configs import gsm8k_0p5b
from remix_jax import files
from remix_jax.config import Config, Data, Evaluation, Model
from remix_jax.data.problems import INSTRUCTION, load_problems
from remix_jax.evaluation import evaluate, run
from remix_jax.models import huggingface
from remix_jax.models.hf_tokenizer import load_vocabulary
from remix_jax.run import loop
from tests import bpe_models
from tests.experiments.runs import figures, quiet, training_samples

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHARED = ROOT.parent / "shared" / "data"
FIXTURES = ROOT / "tests" / "fixtures" / "benchmarks"
ROWS = 200  # of the training file: the first malformed one is row 887


@pytest.fixture
def problems(tmp_path):
    """(training file, folder of the sets): the real ones, else the few that are shipped."""
    train = tmp_path / "train.json"
    if SHARED.is_dir():
        rows = json.loads((SHARED / "train" / "math.json").read_text())
        train.write_text(json.dumps([*rows[:ROWS], rows[886]]))
        return train, SHARED / "test"
    rows = [r for path in sorted(FIXTURES.iterdir()) for r in json.loads(path.read_text())]
    train.write_text(json.dumps([*rows, {"problem": "p", "answer": None}]))
    return train, FIXTURES


def small_run(model, train, suite):
    """ReMix-GRPO as in the preset, cut to three steps of 8 rows."""
    config = gsm8k_0p5b.get_config()
    config.steps, config.reincarnation_step = 3, 0
    config.batch_size, config.group_size = 8, 2
    config.mini_batch_size = config.micro_batch_size = config.score_batch_size = 4
    config.mesh.fsdp = 1  # rows of one pass are fewer than the devices of the suite
    config.model.path = str(model)
    config.data.train, config.data.suites = str(train), (str(suite),)
    config.data.on_bad_row = "skip"
    config.data.prompt_tokens, config.data.response_tokens = 160, 12
    config.optimizer.learning_rate = 1e-3
    config.objective.entropy_coef = 0.1  # nothing is answered right, and yet something is learned
    config.evaluation.every, config.evaluation.batch_size = 0, 8
    config.checkpoint_every = 0
    return config


def test_real_problems_go_through_training_evaluation_and_export(problems, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    train, sets = problems
    texts = [problem.problem for problem in load_problems(train, [])]
    model = bpe_models.write_model(tmp_path / "model", texts)

    config = small_run(model, train, FIXTURES / "math.json")
    console = quiet(config)
    assert not loop.run(config, tmp_path / "run", console).stopped
    export = tmp_path / "run" / "export"
    assert figures(tmp_path / "run")[-1]["step"] == 3
    seen = {sample["prompt"] for sample in training_samples(tmp_path / "run", fresh=False)}
    assert seen <= {
        f"<|im_start|>user\n{t} {INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n" for t in texts
    }
    before = huggingface.load(model)[1]["final_norm"]["scale"]
    after = huggingface.load(export)[1]["final_norm"]["scale"]
    assert np.abs(np.asarray(after) - np.asarray(before)).max() > 1e-4

    evaluated = Config(
        model=Model(path=str(export)),
        data=Data(
            suites=tuple(f"{locate(sets, name)}?name={name}" for name in BENCHMARKS),
            instruction=INSTRUCTION,
            prompt_tokens=1024,
            response_tokens=8,
        ),
        evaluation=Evaluation(batch_size=5, limit=2),
    )
    found = evaluate(evaluated, tmp_path / "eval")
    assert list(found["sets"]) == list(BENCHMARKS)
    passed = [figures["pass@1"] for figures in found["sets"].values()]
    assert found["mean"]["pass@1"] == pytest.approx(np.mean(passed))
    generations = [row for _, row in files.json_lines(tmp_path / "eval" / run.GENERATIONS)]
    assert len(generations) == 10

    peer = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    check_torch_says_the_same(torch, peer, export, sets, generations)


def check_torch_says_the_same(torch, peer, export, sets, generations):
    """Torch's greedy responses to the same prompts, by its own tokenizer and stopping."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(export)
    ends = load_vocabulary(export).eos_ids
    assert [tokenizer.convert_ids_to_tokens(i) for i in ends] == ["<|im_end|>", "<|endoftext|>"]
    by_set = {name: load_problems(locate(sets, name)) for name in BENCHMARKS}
    for row in generations:
        text = by_set[row["set"]][row["place"]].problem
        content = f"{text} Let's think step by step and output the final answer within \\boxed{{}}."
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        assert tokenizer.decode(prompt["input_ids"][0]) == row["prompt"]
        with torch.no_grad():
            out = peer.generate(
                **prompt,
                do_sample=False,
                max_new_tokens=8,
                eos_token_id=list(ends),
                pad_token_id=tokenizer.pad_token_id,
            )[0, prompt["input_ids"].shape[1] :]
        assert len(out) == row["length"]
        written = itertools.takewhile(lambda token: int(token) not in ends, out)
        assert tokenizer.decode([int(token) for token in written]) == row["response"]
        assert row["truncated"] == (int(out[-1]) not in ends)


def test_the_tokenizer_is_the_files_own(tmp_path):
    """Bytes of any text come back, and the template's special tokens are single ids."""
    model = bpe_models.write_model(tmp_path / "model", ["Find $x^2 + 1$ and 12 more."] * 5)
    tokenizer = load_vocabulary(str(model)).tokenizer
    text = "Prove that $\\frac{1}{2}$ \u2264 ü\u2028 <b>12345</b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Find"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.convert_ids_to_tokens(ids).count("<|im_start|>") == 2
    assert dataclasses.asdict(huggingface.read_config(model))["width"] == 32
