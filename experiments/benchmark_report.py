"""What the benchmark says of its measurements: medians, ranges, ratios, tables.

A run is {"side": "remix_jax" or "trl", "setting": label, "result": what its process wrote}. A
result has "steps" (a dict of phase -> [wall, CPU] seconds for each RL step), "decode" ([wall, CPU]
seconds of each generation alone), "load", "peak_memory_mib" and "versions".
"""

import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from experiments.benchmark_peers import PHASES, Size
from experiments.tables import Sheet

SIDES = ("remix_jax", "trl")
KINDS = {"cpu": "CPU-seconds", "wall": "wall seconds"}
COLUMN = {"wall": 0, "cpu": 1}
PHASE_NAMES = {
    "generate": "generate",
    "old": "log-probs under the policy, again",
    "reference": "log-probs under the reference",
    "update": "four mini-batch updates",
    "other": "everything else",
    "step": "whole RL step",
}
TARGETS = {"tiny": 0.5, "small": 0.75}  # largest ratio of CPU-seconds that a step is meant to take


class Spread(NamedTuple):
    """Median and range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def spread(values: Iterable[float]) -> Spread:
    """Median and range of some values.

    Raises:
      ValueError: there is none.
    """
    values = list(values)
    if not values:
        raise ValueError("no measurement")
    return Spread(statistics.median(values), min(values), max(values))


def phase_spreads(results: list[dict[str, Any]], kind: str) -> dict[str, Spread]:
    """Seconds of each phase, and of the whole as "step", over the steps of some processes."""
    column = COLUMN[kind]
    steps = [step for result in results for step in result["steps"]]
    spreads = {
        phase: spread(step.get(phase, (0.0, 0.0))[column] for step in steps) for phase in PHASES
    }
    spreads["step"] = spread(sum(lap[column] for lap in step.values()) for step in steps)
    return spreads


def decode_spread(size: Size, results: list[dict[str, Any]], kind: str) -> Spread:
    """Tokens generated per second, of wall time or of the CPU."""
    column = COLUMN[kind]
    return spread(size.tokens / lap[column] for result in results for lap in result["decode"])


def by_setting(runs: list[dict[str, Any]], side: str) -> dict[str, list[dict[str, Any]]]:
    """The results of a side, by the label of their setting."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if run["side"] == side:
            found.setdefault(run["setting"], []).append(run["result"])
    return found


def best_step(runs: list[dict[str, Any]], side: str, kind: str) -> str:
    """The setting in which the side's whole step took least."""
    found = by_setting(runs, side)
    return min(found, key=lambda label: phase_spreads(found[label], kind)["step"].median)


def best_decode(size: Size, runs: list[dict[str, Any]], side: str, kind: str) -> str:
    """The setting in which the side generated most tokens per second."""
    found = by_setting(runs, side)
    return max(found, key=lambda label: decode_spread(size, found[label], kind).median)


def best_settings(size: Size, runs: list[dict[str, Any]], side: str) -> set[str]:
    """The settings that some table shows for this side."""
    steps = {best_step(runs, side, kind) for kind in KINDS}
    return steps | {best_decode(size, runs, side, kind) for kind in KINDS}


def summarize(size: Size, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Best setting against best setting: seconds by phase, tokens per second, their ratios."""
    summary: dict[str, Any] = {"target": TARGETS.get(size.name)}
    for kind in KINDS:
        step: dict[str, Any] = {}
        decode: dict[str, Any] = {}
        for side in SIDES:
            results = by_setting(runs, side)
            label = best_step(runs, side, kind)
            step[side] = {"setting": label, "phases": phase_spreads(results[label], kind)}
            label = best_decode(size, runs, side, kind)
            rate = decode_spread(size, results[label], kind)
            decode[side] = {"setting": label, "tokens_per_second": rate}
        ours, peer = (step[side]["phases"]["step"].median for side in SIDES)
        step["ratio"] = ours / peer
        ours, peer = (decode[side]["tokens_per_second"].median for side in SIDES)
        decode["ratio"] = ours / peer
        summary[kind] = {"step": step, "decode": decode}
    return summary


def run_line(size: Size, run: dict[str, Any]) -> str:
    """One line on one process, for the console."""
    results = [run["result"]]
    cpu, wall = (phase_spreads(results, kind)["step"].median for kind in KINDS)
    rate = decode_spread(size, results, "wall").median
    return (
        f"{run['side']} ({run['setting']}): step {cpu:.3g} CPU-s, {wall:.3g} s; "
        f"decode {rate:,.0f} tokens/s; load {run['result']['load'][0]:.1f}"
    )


def markdown(record: dict[str, Any]) -> str:
    """The whole report."""
    machine = record["machine"]
    results = [run["result"] for part in record["sizes"].values() for run in part["runs"]]
    versions: dict[str, str] = {}
    for result in results:
        versions |= result["versions"]
    lines = [
        "# One RL step: remix_jax against TRL's GRPOTrainer",
        "",
        f"{machine['processor']}, {machine['cores']} cores, of which a process may use "
        f"{record['cores']}; load average {machine['load'][0]} before, "
        f"{record['load_after'][0]} after (measuring adds about one per busy core).  ",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        "Medians (range) over the steps of all processes, each side in the setting that is its own "
        "best for the measure at hand; launch/local.sh runs with every core and large pages. "
        "Below 1 in a ratio of seconds, above 1 in a ratio of tokens per second: remix_jax is "
        "faster. Its learner is one program: what the reference costs in it is measured apart from "
        "the step and taken off the updates.",
    ]
    for name, part in record["sizes"].items():
        size = Size(**part["problem"])
        lines += ["", f"## {name}: {_problem(size, part['parameters'])}", ""]
        lines += _verdicts(part["summary"])
        for kind in KINDS:
            lines += ["", *_phase_table(part["summary"], kind).markdown()[:-1]]
        tables = _decode_table(part["summary"]), _setting_table(size, part["runs"])
        for table in tables:
            lines += ["", *table.markdown()[:-1]]
        lines += _compilation(part["runs"])
    return "\n".join(lines) + "\n"


def _problem(size: Size, parameters: int) -> str:
    return (
        f"{parameters:,} parameters, width {size.width}, {size.layers} layers; "
        f"{size.rows} responses of {size.response_len} tokens"
    )


def _verdicts(summary: dict[str, Any]) -> list[str]:
    ratio, target = summary["cpu"]["step"]["ratio"], summary["target"]
    lines = [f"* An RL step takes {ratio:.2f} of TRL's CPU-seconds"]
    if target is not None:
        lines[0] += f" (target: at most {target}; {'met' if ratio <= target else 'MISSED'})"
    lines[0] += "."
    for kind, seconds in (("wall", "second"), ("cpu", "CPU-second")):
        ratio = summary[kind]["decode"]["ratio"]
        met = "met" if ratio > 1 else "MISSED"
        lines.append(
            f"* Decoding gives {ratio:.2f} times the tokens per {seconds} of torch `generate` "
            f"(target: more than 1; {met})."
        )
    return lines


def _phase_table(summary: dict[str, Any], kind: str) -> Sheet:
    step = summary[kind]["step"]
    ours, peer = (step[side] for side in SIDES)
    rows = []
    for phase, name in PHASE_NAMES.items():
        mine, theirs = ours["phases"][phase], peer["phases"][phase]
        ratio = f"{mine.median / theirs.median:.2f}" if theirs.median > 0 < mine.high else ""
        none = "none: the sampler's are kept" if phase == "old" else "0"
        rows.append([name, *(str(x) if x.high > 0 else none for x in (mine, theirs)), ratio])
    sides = f"remix_jax ({ours['setting']})", f"TRL ({peer['setting']})"
    return Sheet([KINDS[kind], *sides, "ratio"], rows)


def _decode_table(summary: dict[str, Any]) -> Sheet:
    rows = []
    for kind, name in (("wall", "per second"), ("cpu", "per CPU-second")):
        decode = summary[kind]["decode"]
        cells = []
        for side in SIDES:
            rate = decode[side]["tokens_per_second"]
            figures = f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})"
            cells.append(f"{figures}, {decode[side]['setting']}")
        rows.append([name, *cells, f"{decode['ratio']:.2f}"])
    return Sheet(["generation alone, tokens", "remix_jax", "torch `generate`", "ratio"], rows)


def _setting_table(size: Size, runs: list[dict[str, Any]]) -> Sheet:
    rows = []
    for side in SIDES:
        for label, results in by_setting(runs, side).items():
            cpu, wall = (phase_spreads(results, kind)["step"] for kind in KINDS)
            rates = [decode_spread(size, results, kind).median for kind in ("wall", "cpu")]
            memory = max(result["peak_memory_mib"] for result in results)
            load = spread(x for result in results for x in result["load"])
            cells = [str(len(results)), str(cpu), str(wall), *(f"{rate:,.0f}" for rate in rates)]
            cells += [f"{memory:,.0f}", f"{load.low:.1f} to {load.high:.1f}"]
            rows.append([f"{side}, {label}", *cells])
    header = ["side, setting", "processes", "step, CPU-s", "step, s", "tokens/s", "tokens/CPU-s"]
    return Sheet([*header, "peak MiB", "load"], rows)


def _compilation(runs: list[dict[str, Any]]) -> list[str]:
    """What remix_jax spends before its first step, which no other figure contains."""
    found = [run["result"].get("compile_seconds") for run in runs if run["side"] == SIDES[0]]
    seconds = [x for x in found if x is not None]
    if not seconds:
        return []
    return [
        "",
        "Not in these figures: remix_jax compiles its programs before the first step, "
        f"{max(seconds):.0f} s at most, {min(seconds):.0f} s at least (found in its cache).",
    ]
