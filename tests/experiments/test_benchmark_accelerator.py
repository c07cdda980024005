"""The accelerator's benchmark on a CPU, with a tiny shape: parts, their figures, the bound."""

import json
import sys

import pytest

from experiments import benchmark_accelerator as benchmark
from remix_jax import cost
from tests.tiny_models import decoder_config

PEAKS = cost.chip("NVIDIA H200")


@pytest.mark.parametrize(("part", "tokens"), [("decoding", 8 * 5), ("learning", 8 * 8)])
def test_a_phase_is_measured_and_set_against_the_chip(part, tokens, monkeypatch):
    config = benchmark.benchmark_config(rows=8, micro=4, prompt=3, response=5)
    monkeypatch.setattr(cost, "chip", lambda: PEAKS)
    found = getattr(benchmark, part)(decoder_config(), config, repeats=1)
    (seconds,) = found["seconds"]
    assert found["tokens_per_second"] == pytest.approx(tokens / seconds)
    assert 0 < found["share_of_peak"] < 1
    assert 0 < found["load_seconds"] < found["compile_seconds"]
    assert sum(each["share"] for each in found["operations"]) <= 1.001
    assert found["operations"][0]["seconds"] > 0
    sheet, operations = benchmark.sheets({"parts": {part: found}})
    assert sheet.rows[0][0] == operations.title == part


def test_a_second_call_measures_what_the_first_left_out(tmp_path, monkeypatch, capsys):
    made = []

    def parts(directory, out):
        def part(name):
            made.append(name)
            return {"seconds": [1.0], "tokens_per_second": 7.0}

        return {name: lambda name=name: part(name) for name in ("one", "two")}

    monkeypatch.setattr(benchmark, "_parts", parts)
    given = {"models": ["Qwen2.5-0.5B-Instruct"], "out": str(tmp_path), "seconds": 0}
    given |= {"prompt": 3, "response": 5}
    values = type("Flags", (), given)
    monkeypatch.setattr(benchmark, "FLAGS", values)
    benchmark.benchmark()
    assert made == []
    assert "one: not begun; the same command goes on" in capsys.readouterr().out
    values.seconds = 60
    benchmark.benchmark()
    benchmark.benchmark()
    assert made == ["one", "two"]
    assert len(json.loads((tmp_path / "results.json").read_text())["parts"]) == 2
    assert "| Qwen2.5-0.5B-Instruct: two | 7 |" in (tmp_path / "results.md").read_text()
    values.response = 6
    with pytest.raises(benchmark.InputError, match="holds results of"):
        benchmark.benchmark()


def test_the_bound_of_decoding_is_one_reading_of_weights_and_cache():
    """Qwen2.5-1.5B: 3.1 GB of weights, 28,672 bytes of cache a slot."""
    sizes = benchmark.huggingface.read_config(
        benchmark.ARCHITECTURES / "DeepSeek-R1-Distill-Qwen-1.5B"
    )
    bound = benchmark.decode_bound(sizes, rows=64, prompt=256, response=1024, rate=4.3e12)
    assert bound == pytest.approx(64 / ((3.1e9 + 64 * 768 * 28_672) / 4.3e12), rel=0.01)


def test_a_torch_side_that_fails_is_told_in_one_line(tmp_path):
    with pytest.raises(benchmark.InputError, match=r"--torch=.*KeyError: 'model'"):
        benchmark.theirs(sys.executable, {}, tmp_path)
