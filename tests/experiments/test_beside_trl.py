"""Our GRPO beside TRL's: what both are given, how curves are compared; training is not run here."""

import json
import pathlib

import pytest

from experiments import beside_trl, beside_trl_peer
from experiments.configs import arithmetic_grpo, arithmetic_ppo, arithmetic_remix_grpo
from remix_jax import config as configs
from remix_jax.data import tasks
from remix_jax.errors import InputError
from remix_jax.models.hf_tokenizer import load_vocabulary


@pytest.fixture
def config(tmp_path):
    """GRPO on the first of the task's problems."""
    config = arithmetic_grpo.get_config()
    lines = pathlib.Path(config.data.train).read_text().splitlines(keepends=True)[:20]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    config.data.train = str(tmp_path / "train.jsonl")
    return config


@pytest.mark.parametrize(
    ("preset", "changes", "field"),
    [
        (arithmetic_remix_grpo, {}, "passes"),
        (arithmetic_ppo, {}, "objective.advantage"),
        (arithmetic_grpo, {"kl": {"in_reward": True}}, "kl.in_reward"),
        (arithmetic_grpo, {"optimizer": {"name": "lion"}}, "optimizer.name"),
        (arithmetic_grpo, {"sampling": {"top_k": 5}}, "sampling.top_k"),
        (arithmetic_grpo, {"lora": {"rank": 4}}, "lora.rank"),
    ],
)
def test_what_trl_does_not_do_is_refused(preset, changes, field):
    config = preset.get_config()
    for section, values in changes.items():
        for name, value in values.items():
            setattr(getattr(config, section), name, value)
    with pytest.raises(InputError, match=rf"config\.{field} = .*: TRL's side is GRPO with"):
        beside_trl.check(config)


def test_what_trl_is_told_may_differ():
    config = arithmetic_grpo.get_config()
    config.kl.weighted, config.objective.clip_high, config.objective.mask_truncated = (
        *(True, 0.28, True),
    )
    beside_trl.check(config)
    for path in (*beside_trl.TOLD, *beside_trl.IDLE, *beside_trl.NEEDED):
        configs.field_type(path)


def test_both_get_the_same_prompts_answers_and_settings(config, tmp_path):
    config.steps, config.evaluation.every = 10, 4
    spec = beside_trl.spec_of(config, tmp_path, threads=1)
    tokenizer = load_vocabulary(config.model.path).tokenizer
    assert [tokenizer(text)["input_ids"] for text in spec["prompts"]] == spec["ids"]
    found = tasks.load_set(config.data.train, config.data, tokenizer)
    assert spec["answers"] == [str(p.answers[0]) for p in found.problems]
    assert spec["save_at"] == [4, 8, 10]
    assert (spec["learning_rate"], spec["kl_coef"], spec["group_size"]) == (1e-4, 0.001, 8)
    json.dumps(spec)


def test_rewards_that_ours_would_not_give_are_counted(config, tmp_path):
    spec = beside_trl.spec_of(config, tmp_path, threads=1)
    prompt, right = spec["prompts"][0], spec["answers"][0]
    said = [(f"\\boxed{{{right}}}", 1.0), (f"\\boxed{{{right}}}", 0.0), ("nothing", 0.0)]
    rows = ({"prompt": prompt, "completion": text, "reward": reward} for text, reward in said)
    (tmp_path / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert beside_trl.regraded(config, tmp_path) == (3, 1)


def test_the_peer_reads_the_last_box_or_tag():
    assert beside_trl_peer.answered("a \\boxed{ 1 } b \\boxed{-2}.") == "-2"
    assert beside_trl_peer.answered("<answer>3</answer> <answer>\n4 </answer>") == "4"
    assert beside_trl_peer.answered("5") is None


def test_curves_agree_where_a_median_is_within_the_others_range():
    assert beside_trl.windows([0.0, 1.0, 0.5, 0.5, 9.0], rows=8, every=2) == [(16, 0.5), (32, 0.5)]

    def run(*values):
        return {"held_out": [(8 * i, value) for i, value in enumerate(values)]}

    ours = [run(0.2, 0.5, 0.8), run(0.2, 0.6, 0.8), run(0.2, 0.7, 0.9)]
    trl = [run(0.2, 0.4, 0.1), run(0.2, 0.62, 0.2), run(0.2, 0.62, 0.3)]
    rows = beside_trl.sheet({"runs": {"remix_jax": ours, "TRL": trl}}, "held_out", "").rows
    assert [row[0] for row in rows] == ["0", "8", "16"]
    assert rows[1][1:3] == ["60.0 [50.0–70.0]", "62.0 [40.0–62.0]"]
    assert [row[3] for row in rows] == ["both", "both", "none"]
