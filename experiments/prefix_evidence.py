"""PrefixRL and its baselines at equal FLOPs on hard arithmetic, the rejection phase included.

    python -m experiments.prefix_evidence --workdir=runs/prefix

Plain GRPO and PPO spend the whole budget on training. The others first pay for a bank of traces and
train with what is left: supervised on the traces and then by GRPO, LUFFY, PrefixRL, PrefixRL on
prefixed problems alone, PrefixRL with ReMix. Every arm gets the same learning rates, chosen from by
validation accuracy on other hard problems (seeds 0 to --tuning - 1), then all seeds at its own
best; plain GRPO gets them at the first rate too. There PrefixRL is also trained on a larger bank,
whatever that cost (--bar_bank): experiments.bars reads it. What is complete in the workdir is not
repeated.
"""

import dataclasses
import functools
import io
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags

from experiments import config_flag, main, trials
from experiments.configs import arithmetic_prefix_reinforce, arithmetic_prefix_remix
from experiments.report import files, prefix
from experiments.trials import Trial
from remix_jax import config_rules, schedule
from remix_jax.config import Config
from remix_jax.cost import step_flops
from remix_jax.data import traces
from remix_jax.errors import InputError
from remix_jax.learner.state import make_learner
from remix_jax.models import huggingface
from remix_jax.models.decoder import Decoder
from remix_jax.run import loop
from remix_jax.sinks.console import Console
from remix_jax.sinks.metrics import read_metrics

PRESET = pathlib.Path(arithmetic_prefix_reinforce.__file__)
BAR_BANK = arithmetic_prefix_reinforce.TASK / "traces_2500"
ACCURACY = "eval/hard_test"
EVALUATIONS = 16  # of a run, about
TOKENS = 14  # of a response, to plan steps by: what a run really spent is counted
BAR_ROLLOUTS = 6144
SFT_STEPS, SFT_ROWS = 120, 32  # where its validation accuracy has flattened


class Arm(NamedTuple):
    """A method: its name for people, its change of PrefixRL's config, how it uses the traces."""

    label: str
    change: Callable[[Config], Config]
    prefixed: bool = False
    pays: bool = True  # for the bank
    tuned: bool = False  # starts from the base after supervised training on the traces


def _without_prefix(config: Config, **objective: Any) -> Config:
    return dataclasses.replace(
        config,
        prefix=dataclasses.replace(config.prefix, bank="", tokens=0),
        objective=dataclasses.replace(config.objective, **objective),
    )


def grpo(config: Config) -> Config:
    """Plain GRPO on the hard problems."""
    return _without_prefix(config, advantage="group_normalized")


def ppo(config: Config) -> Config:
    """Plain PPO: one response a problem, a critic."""
    return dataclasses.replace(_without_prefix(config, advantage="gae"), group_size=1)


def luffy(config: Config) -> Config:
    """LUFFY: a trace and seven own responses to its problem in every group."""
    expert = dataclasses.replace(config.expert, bank=config.prefix.bank)
    return dataclasses.replace(_without_prefix(config, method="luffy"), expert=expert)


def only(config: Config) -> Config:
    """PrefixRL that never sees a problem without a prefix."""
    return dataclasses.replace(config, prefix=dataclasses.replace(config.prefix, share=1.0))


def remix(config: Config) -> Config:
    """PrefixRL whose rows are replayed, as in the preset of that."""
    preset = arithmetic_prefix_remix.get_config()
    return dataclasses.replace(
        config,
        replay=preset.replay,
        kl=preset.kl,
        passes=preset.passes,
        reincarnation_step=preset.reincarnation_step,
    )


ARMS: dict[str, Arm] = {
    prefix.PLAIN: Arm("GRPO", grpo, pays=False),
    "ppo": Arm("PPO", ppo, pays=False),
    "sft-grpo": Arm("supervised on the traces, then GRPO", grpo, tuned=True),
    "luffy": Arm("LUFFY", luffy),
    prefix.PREFIXED: Arm("PrefixRL 3 : 1", lambda config: config, prefixed=True),
    prefix.ONLY: Arm("PrefixRL, prefixed problems alone", only, prefixed=True),
    "prefix-remix": Arm("PrefixRL + ReMix", remix, prefixed=True),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run, on what, and how often."""

    config: Config  # of PrefixRL
    budget: float  # FLOPs, the rejection phase of `bank` included
    bank: traces.Bank
    learning_rates: tuple[float, ...]  # the first is the one that bars are read at
    seeds: int
    tuning: int
    workdir: pathlib.Path
    bar_bank: str

    def bar(self, seed: int) -> Trial:
        """PrefixRL on the large bank at the first rate, for as many rollouts as the bar asks."""
        config = at(self.config, self.learning_rates[0], self.config.seed + seed)
        steps = BAR_ROLLOUTS // config.batch_size
        config = dataclasses.replace(
            config,
            prefix=dataclasses.replace(config.prefix, bank=self.bar_bank),
            steps=steps,
            evaluation=dataclasses.replace(config.evaluation, every=max(steps // 4, 1)),
        )
        return Trial(f"bar/seed{seed}", config)

    def trial(self, name: str, rate: float, seed: int) -> Trial:
        """One run; of a tuned arm only after `supervise`."""
        config = at(ARMS[name].change(self.config), rate, self.config.seed + seed)
        if ARMS[name].tuned:
            model = dataclasses.replace(config.model, path=str(self.sft(rate, seed) / "export"))
            config = dataclasses.replace(config, model=model)
        left = self.budget - (self.bank.flops if ARMS[name].pays else 0.0)
        steps = steps_within(config, self.config.model.path, left)
        evaluation = dataclasses.replace(config.evaluation, every=max(steps // EVALUATIONS, 1))
        config = dataclasses.replace(config, steps=steps, evaluation=evaluation)
        return Trial(f"{name}/lr{rate:g}/seed{seed}", config)

    def sft(self, rate: float, seed: int) -> pathlib.Path:
        """Where the supervised stage of a trial lies."""
        return self.workdir / "sft" / f"lr{rate:g}" / f"seed{seed}"

    def paid(self, name: str, rate: float, seed: int) -> float:
        """FLOPs before training that the run's own count leaves out."""
        arm = ARMS[name]
        own_count = arm.prefixed or not arm.pays  # a run with prefixes counts its bank itself
        before = 0.0 if own_count else self.bank.flops
        if arm.tuned:
            before += read_metrics(self.sft(rate, seed))[-1]["flops"]
        return before


def at(config: Config, rate: float, seed: int) -> Config:
    """The config at a learning rate and a seed."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
    return dataclasses.replace(config, optimizer=optimizer, seed=seed)


def sft_config(config: Config) -> Config:
    """Log-likelihood of the traces, `SFT_STEPS` updates; PrefixRL's config otherwise."""
    expert = dataclasses.replace(config.expert, bank=config.prefix.bank)
    return dataclasses.replace(
        _without_prefix(config, method="sft", advantage="method"),
        expert=expert,
        group_size=1,
        steps=SFT_STEPS,
        batch_size=SFT_ROWS,
        mini_batch_size=SFT_ROWS,
        micro_batch_size=SFT_ROWS,
        evaluation=dataclasses.replace(config.evaluation, every=0),
    )


def supervise(plan: Plan, keys: list[tuple[str, float, int]]) -> None:
    """Runs the supervised stage of tuned arms where it is not there yet."""
    for name, rate, seed in keys:
        directory = plan.sft(rate, seed)
        config = at(sft_config(plan.config), rate, plan.config.seed + seed)
        if not ARMS[name].tuned or (directory / "export").exists():
            continue
        console = Console(config.steps, file=io.StringIO())
        if loop.run(config, directory, console=console).stopped:
            raise main.Stopped


@functools.cache
def _sizes(model: str):
    return huggingface.read_config(model)


def steps_within(config: Config, model: str, budget: float) -> int:
    """Steps that about spend the budget, by the cost of their programs."""
    learner = make_learner(config, Decoder(_sizes(model)))
    spent, step = 0.0, 0
    while spent < budget:
        step += 1
        one = dataclasses.replace(config, steps=step)
        stage = schedule.stages(one)[schedule.stage_at(one, step)]
        tokens = TOKENS * schedule.fresh_groups(config, step) * config.group_size
        spent += sum(step_flops(learner, config, stage, tokens, step))
    return step


def measure(plan: Plan, arms: tuple[str, ...], workers: int) -> dict[str, Any]:
    """Trains what is missing; the content of prefix.json, without `about`."""

    def train(keys: list[trials.Key]) -> list[dict]:
        supervise(plan, keys)
        made = [plan.trial(*key) for key in keys]
        done = trials.run(made, plan.workdir / "runs", workers)
        return [
            done[trial.name].record(key, accuracy=ACCURACY, paid=plan.paid(*key))
            | {"by_prefix": prefix.by_prefix(done[trial.name].metrics)}
            for key, trial in zip(keys, made, strict=True)
        ]

    data: dict[str, Any] = {
        "budget": plan.budget,
        "bank": _described(plan.bank),
        "learning_rates": list(plan.learning_rates),
        "methods": [
            {"name": a, "label": ARMS[a].label, "prefixed": ARMS[a].prefixed} for a in arms
        ],
    }
    at_equal = [(prefix.PLAIN, plan.learning_rates[0])]
    data = trials.tuned(data, prefix.Prefix, train, plan.seeds, plan.tuning, at_equal)
    made = [plan.bar(seed) for seed in range(plan.seeds)]
    done = trials.run(made, plan.workdir / "runs", workers)
    data["bar"] = {
        "bank": _described(traces.load(plan.bar_bank)),
        "rollouts": BAR_ROLLOUTS,
        "accuracy": [_last(done[trial.name], ACCURACY) for trial in made],
    }
    return data


def _last(done: trials.Done, key: str) -> float:
    """The figure at the end of a run; 0 of one that broke off."""
    return 0.0 if done.broken else done.metrics[-1][key]


def _described(bank: traces.Bank) -> dict[str, float]:
    return {
        "traces": bank.solved,
        "problems": len(bank.traces),
        "attempts": bank.attempts,
        "flops": bank.flops,
    }


def make_plan(config: Config, values, workdir: pathlib.Path) -> Plan:
    """The plan that the flags ask for.

    Raises:
      InputError: a config without a bank, a wrong number, a budget that the bank eats up.
    """
    config_rules.validate(config)
    if not config.prefix.bank:
        raise InputError("config.prefix.bank = '': name the bank of traces")
    rates = trials.learning_rates(values.learning_rates)
    trials.check_seeds(values.seeds, values.tuning)
    bank = traces.load(config.prefix.bank)
    if values.budget <= bank.flops:
        raise InputError(f"--budget={values.budget:g}: the bank alone took {bank.flops:.3g} FLOPs")
    traces.load(values.bar_bank)
    return Plan(
        config, values.budget, bank, rates, values.seeds, values.tuning, workdir, values.bar_bank
    )


def experiment() -> None:
    """The experiment behind the flags."""
    begin = time.perf_counter()
    values = flags.FLAGS
    workdir, workers = pathlib.Path(values.workdir), WORKERS()
    plan = make_plan(config_flag.value_of(CONFIG), values, workdir)
    data = measure(plan, tuple(ARMS), workers)
    data["about"] = trials.about(plan.config, time.perf_counter() - begin, workers)
    for claim in files.write("prefix", data, workdir).claims():
        print(f"{claim.verdict}: {claim.claim} {claim.evidence}")
    print(f"table and figure: {workdir}/prefix.md, .json, .png")


if __name__ == "__main__":
    CONFIG = config_flag.define(default=str(PRESET))
    flags.DEFINE_float("budget", 1e12, "FLOPs of every arm, the rejection phase included")
    flags.DEFINE_list("learning_rates", ["3e-4", "1.5e-4", "6e-4"], "the grid")
    flags.DEFINE_integer("seeds", 3, "seeds of each arm", lower_bound=1)
    flags.DEFINE_integer("tuning", 1, "seeds of each trial of the grid", lower_bound=1)
    flags.DEFINE_string("bar_bank", str(BAR_BANK), "bank of traces that the bar is measured with")
    WORKERS = trials.define_workers()
    flags.DEFINE_string("workdir", "runs/prefix", "a directory a run, and the results")
    main.run(experiment)
