"""Config: every field is read, every wrong value is refused in one line that says what is right."""

import ast
import copy
import csv
import dataclasses
import json
import pathlib

import pytest

from experiments.configs import (
    arithmetic_grpo,
    arithmetic_ppo,
    arithmetic_remix_grpo,
    arithmetic_remix_ppo,
)
from experiments.methods import METHODS
from remix_jax import config as configs
from remix_jax import config_rules, schedule
from remix_jax.config import Config
from remix_jax.errors import InputError
from remix_jax.learner.state import Static, static_of
from remix_jax.learner.step import step_inputs
from remix_jax.rl import schedules

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESETS = [arithmetic_ppo, arithmetic_grpo, arithmetic_remix_ppo, arithmetic_remix_grpo]


def good() -> Config:
    return arithmetic_remix_ppo.get_config()


def fields_of(kind, prefix=""):
    for field in dataclasses.fields(kind):
        inner = field.default_factory
        if inner is not dataclasses.MISSING and dataclasses.is_dataclass(inner()):
            yield from fields_of(inner(), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_no_dead_field():
    """Each leaf's name is read as an attribute outside the config's own checks.

    What compiled programs read they read of `Static`, whose fields name those of the config.
    """
    read = set()
    for path in (ROOT / "remix_jax").rglob("*.py"):
        if path.name == "config_rules.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            inner = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
            read |= {n.attr for n in inner if isinstance(n.ctx, ast.Load)}
    of_programs = {f.name: f.metadata.get("path") for f in dataclasses.fields(Static)}
    assert set(of_programs) <= read, "a field of Static that no program reads"
    read |= {path.split(".")[-1] for path in of_programs.values() if path}
    dead = [name for name in fields_of(Config()) if name.split(".")[-1] not in read]
    assert dead == []


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.__name__.split(".")[-1])
def test_presets_are_valid(preset):
    config = preset.get_config()
    config_rules.validate(config)
    assert schedule.planned_rollouts(config) == 8192


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", [arithmetic_remix_ppo, arithmetic_remix_grpo])
def test_methods_are_valid_and_spend_the_same_rollouts(method, preset):
    full = preset.get_config()
    config = METHODS[method].change(full)
    config_rules.validate(config)
    spent, budget = schedule.planned_rollouts(config), schedule.planned_rollouts(full)
    assert budget <= spent < budget + config.batch_size


WRONG = [
    ("replay.share", 1.0, "must be in [0, 1)"),
    ("replay.share", 0.999, "leaves steps without a fresh group"),
    ("replay.window", 0, "must be 1 or more"),
    ("group_size", 3, "must divide batch_size = 128"),
    ("mini_batch_size", 48, "must divide batch_size = 128"),
    ("micro_batch_size", 5, "must divide mini_batch_size = 32"),
    ("passes", 0, "must be 1 or more"),
    ("steps", 0, "must be 1 or more"),
    ("seed", -1, "must be in [0, 2^31)"),
    ("objective.advantage", "gea", "one of gae, vtrace, group_normalized, rloo"),
    ("objective.aggregation", "token-sum", "one of token-mean"),
    ("objective.method", "bppi", "one of mix_ppg, ppo"),
    ("objective.method_params", ("cap=2",), "mix_ppg has no parameter 'cap'; it has none"),
    ("replay.sampler", "best", "one of uniform, max_advantage"),
    ("expert.bank", "traces", "mix_ppg needs behaviour log-probs, which the rows of a bank do not"),
    ("objective.dual_clip", 0.5, "must be 0 (off) or above 1"),
    ("kl.estimator", "k4", "one of k1, k2, k3"),
    ("kl.in_reward", True, "needs kl.coef above 0 and a method whose advantages it would change"),
    ("kl.weighted", True, "needs a KL term in the loss"),
    ("kl.coef", -0.1, "must be 0 (off) or more"),
    ("kl.coef", float("nan"), "must be a finite number"),
    ("sampling.correction", "token", "one of token_truncate, token_mask, sequence_truncate"),
    ("sampling.temperature", 0.0, "must be above 0"),
    ("sampling.top_p", 0.0, "must be in (0, 1]"),
    ("optimizer.name", "adam", "one of adamw, lion, muon, adafactor"),
    ("optimizer.learning_rate", 0.0, "must be above 0"),
    ("critic.optimizer.beta2", 1.0, "must be in [0, 1)"),
    ("evaluation.samples", 0, "must be 1 or more"),
    ("model.dtype", "float16", "one of float32, bfloat16"),
    ("model.path", "", "must name a model directory"),
    ("data.suites", (), "must name a held-out file"),
    ("prefix.tokens", 4, "slots for a prefix: 1 or more with a trace bank"),
    ("prefix.share", 0.0, "must be in (0, 1]"),
    ("prefix.cuts", 0, "must be 1 or more"),
    ("prefix.low", 1.0, "must be in [0, 1)"),
    ("prefix.high", 0.3, "must be in (prefix.low = 0.4, 1]"),
    ("data.on_bad_row", "drop", "one of refuse, skip"),
    ("memory.decode_tokens", 20, "must be 0 (off) or hold a row of prompt and response,"),
]


@pytest.mark.parametrize(("field", "value", "rule"), WRONG, ids=lambda x: str(x)[:30])
def test_wrong_values_are_refused_by_name(field, value, rule):
    config = good()
    if field in ("kl.in_reward", "kl.weighted"):
        config.kl.coef = 0.0
    *sections, name = field.split(".")
    section = config
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, value)
    with pytest.raises(InputError) as error:
        config_rules.validate(config)
    message = str(error.value)
    assert f"config.{field} = " in message
    assert rule in message
    assert "\n" not in message


# (method, other fields, field that is wrong, what would be right)
UNFIT = [
    ("rloo", {}, "objective.advantage = 'gae'", "rloo needs rloo"),
    ("topr", {}, "objective.advantage = 'gae'", "topr needs method"),
    (
        "ppo",
        {"objective.advantage": "method", "group_size": 8},
        "objective.advantage",
        "ppo has no advantage of its own",
    ),
    ("gspo", {}, "objective.aggregation", "gspo needs seq-mean-token-mean"),
    ("geppo", {}, "replay.window = 2", "geppo needs 3, 6, 9"),
    ("bapo", {"objective.method_params": ("target=1.5",)}, "objective.method_params", "in [0, 1]"),
    ("bapo", {"objective.method_params": ("target",)}, "objective.method_params", "target=NUMBER"),
    (
        "cispo",
        {"objective.method_params": ("hi=1",)},
        "objective.method_params = ('hi=1',)",
        "no parameter 'hi'; it has low (the weight is clipped at 1 - low, 1), high",
    ),
    ("cispo", {"objective.clip": 0.3}, "objective.clip = 0.3", "its own parameters: low, high"),
    ("bapo", {"objective.dual_clip": 3.0}, "objective.dual_clip = 3.0", "bapo does not read it"),
    (
        "agro",
        {"objective.advantage": "method", "group_size": 64, "mini_batch_size": 32},
        "mini_batch_size = 32",
        "agro needs whole groups: a multiple of group_size = 64",
    ),
    ("chord_phi", {}, "expert.bank = ''", "chord_phi needs the rows of an expert"),
    ("chord_phi", {"expert.bank": "b"}, "objective.advantage", "group advantage, no critic"),
    ("gspo", {"expert.bank": "b"}, "expert.bank = 'b'", "set objective.method to one of reinforce"),
    (
        "sft",
        {"expert.bank": "b", "objective.advantage": "method", "group_size": 8},
        "group_size = 8",
        "sft has no rows but the expert's",
    ),
    (
        "luffy",
        {"expert.bank": "b", "objective.advantage": "mean_baseline", "prefix.bank": "p"},
        "expert.bank = 'b'",
        "not together with prefix.bank",
    ),
]


@pytest.mark.parametrize(("method", "fields", "wrong", "right"), UNFIT, ids=lambda x: str(x)[:20])
def test_a_method_says_what_it_needs(method, fields, wrong, right):
    config = good()
    for field, value in {"objective.method": method, **fields}.items():
        section, _, name = field.rpartition(".")
        setattr(getattr(config, section) if section else config, name, value)
    if method == "gspo" and fields:
        config.objective.aggregation = "seq-mean-token-mean"
    if "prefix.bank" in fields:
        config.group_size, config.prefix.tokens = 8, 4
    with pytest.raises(InputError) as error:
        config_rules.validate(config)
    message = str(error.value)
    assert f"config.{wrong}" in message
    assert right in message
    assert "\n" not in message


def test_a_method_that_compares_nothing_needs_no_group():
    config = good()
    config.objective.method, config.objective.advantage = "topr", "method"
    config.objective.aggregation = "seq-mean-token-mean"
    config_rules.validate(config)
    config.objective.method, config.objective.aggregation = "asymre", "token-mean"
    with pytest.raises(InputError, match=r"config.group_size = 1: method compares at least 2"):
        config_rules.validate(config)


def test_methods_with_other_numbers_share_programs():
    one, other = good(), good()
    one.objective.method = other.objective.method = "cispo"
    one.objective.method_params = ("high=0.3",)
    assert static_of(one) == static_of(other)
    assert step_inputs(one, 1).method_params_M["high"].tolist() == pytest.approx([0.3, 0.3])


def test_adafactor_has_no_moments():
    config = good()
    config.critic.optimizer.name = "adafactor"
    config_rules.validate(config)
    config.critic.optimizer.first_moment_dtype = "bfloat16"
    with pytest.raises(InputError, match=r"critic.optimizer.first_moment_dtype = 'bfloat16': ada"):
        config_rules.validate(config)


def test_group_methods_need_groups():
    config = good()
    config.objective.advantage = "group_normalized"
    with pytest.raises(InputError, match=r"config.group_size = 1: group_normalized compares"):
        config_rules.validate(config)


def test_unknown_fields_are_refused_with_the_one_that_was_meant():
    config = good()
    with pytest.raises(InputError, match="Optimizer has no field lr; did you mean learning_rate"):
        config.optimizer.lr = 1e-4
    with pytest.raises(InputError, match="Optimizer has no field lr; did you mean learning_rate"):
        configs.Optimizer(lr=1e-4)
    with pytest.raises(InputError, match="did you mean group_size"):
        config.group_sizes = 8
    with pytest.raises(InputError, match=r"mean optimizer\.learning_rate or critic\.opt"):
        config.learning_rate = 1
    with pytest.raises(InputError, match="Data has no field foo: its fields are train, suites"):
        config.data.foo = 1
    assert configs.field_type("data.suites") == tuple[str, ...]
    with pytest.raises(InputError, match="Config has no field reply; did you mean replay"):
        configs.field_type("reply.share")


def test_a_run_reads_a_copy_that_cannot_be_changed():
    config = good()
    checked = config_rules.validate(config)
    assert checked == config
    for section in (checked, checked.optimizer, checked.critic.optimizer):
        with pytest.raises(InputError, match="a config that was checked cannot be changed"):
            section.__setattr__(dataclasses.fields(section)[0].name, 1)
    config.kl.coef = 0.5
    assert checked.kl.coef != 0.5
    for other in (dataclasses.replace(checked, seed=7), copy.deepcopy(checked)):
        other.critic.optimizer.beta1 = 0.5
        assert checked.critic.optimizer.beta1 is None
    kl = configs.KL()
    assert dataclasses.replace(config, kl=kl).kl is not kl, "no two configs share a section"


def test_json_holds_every_field():
    saved = json.loads(configs.to_json(good()))
    for name in fields_of(Config()):
        node = saved
        for part in name.split("."):
            assert part in node
            node = node[part]


def paper_run(algo, B, p, N, T, steps, utd_stage1, **_):
    config = Config(batch_size=B, steps=steps, reincarnation_step=T, mini_batch_size=B)
    config.micro_batch_size = B
    config.passes = utd_stage1
    config.replay.share = p
    config.replay.window = max(N, 1)
    return config


def test_rollouts_are_the_published_ones(goldens):
    runs = json.loads((goldens / "accounting" / "rollout_totals.json").read_text())
    by_id = {run["id"]: paper_run(**run) for run in runs}
    for run in runs:
        assert schedule.planned_rollouts(by_id[run["id"]]) == run["total_floor_cum"], run["id"]
    with (goldens / "accounting" / "rollouts_per_step.csv").open() as file:
        for row in csv.DictReader(file):
            config, step = by_id[row["id"]], int(row["step"])
            fresh = schedule.fresh_groups(config, step)
            assert fresh == int(row["fresh_floor_cum"])
            assert schedule.rollouts_until(config, step) == int(row["cum_floor_cum"])


@pytest.mark.parametrize("units", [7, 10, 16, 128, 256])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.4, 0.5, 0.7, 0.85])
def test_stage_slots_hold_every_step(units, share):
    config = Config(batch_size=units, mini_batch_size=units, micro_batch_size=units, steps=90)
    config.replay.share = share
    config.reincarnation_step = 0
    (stage,) = schedule.stages(config).values()
    fresh = [schedule.fresh_groups(config, k) for k in range(1, 91)]
    assert max(fresh) == stage.fresh_groups
    assert units - min(fresh) == stage.replay_groups
    assert sum(fresh) == int(90 * (1 - schedules.Fraction(str(share))) * units)


def test_stages_follow_the_switches():
    full = good()
    assert list(schedule.stages(full)) == ["mix", "on-policy"]
    assert list(schedule.stages(METHODS["remix-ppo-without-reincarnation"].change(full))) == ["mix"]
    assert list(schedule.stages(METHODS["ppo"].change(full))) == ["on-policy"]
    assert schedule.stage_at(full, full.reincarnation_step) == "mix"
    assert schedule.stage_at(full, full.reincarnation_step + 1) == "on-policy"
