"""report.html: a run, or several beside each other, as one page that needs nothing else.

All of it comes from the files of a run's directory, so it can be made while the run goes on; the
curves are drawn by the page's own script (report.html beside this file) from the data in it.
"""

import contextlib
import html
import json
import math
import pathlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.traverse_util

from remix_jax import config as configs
from remix_jax import files, schedule
from remix_jax.errors import InputError
from remix_jax.run import report
from remix_jax.run.resume import CONFIG_FILE
from remix_jax.sinks.console import HELD_OUT
from remix_jax.sinks.health import RULES
from remix_jax.sinks.metrics import FILES, SAMPLES_FILE, WARNINGS_FILE, Metrics, read_metrics
from remix_jax.text import count, one_line, percent

PAGE, LEDGER_FILE, PRESET_FILE = "report.html", "ledger.json", "preset.json"
READ = (*FILES, CONFIG_FILE, LEDGER_FILE, PRESET_FILE)  # what a page is made of
_TEMPLATE = pathlib.Path(__file__).with_name(PAGE)
_POINTS = 2000  # steps of a curve; of longer runs every n-th and those that were evaluated
_SAMPLE_BYTES = 6 << 20  # of responses in a page
_STEP = re.compile(rb'\{"step": (\d+)')


class Reference(NamedTuple):
    """What others reached, as they published it."""

    name: str
    source: str
    figures: dict[str, list[list[float]]]  # of our metrics: [fresh rollouts, value], ascending


def read_reference(path: pathlib.Path) -> Reference:
    """A published curve: an object of `name`, `source` and `figures`.

    Raises:
      InputError: the file is not there, or holds something else.
    """
    try:
        given = json.loads(path.read_text())
        figures = {k: [[float(x), float(y)] for x, y in v] for k, v in given["figures"].items()}
        return Reference(str(given["name"]), str(given["source"]), figures)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: no reference ({one_line(error)}); expected an object of name, source and "
            'figures, as {"eval/mean": [[fresh rollouts, accuracy], ...]}'
        ) from None


def write(
    runs: Mapping[str, pathlib.Path], path: pathlib.Path, references: Sequence[Reference] = ()
) -> None:
    """Writes the page of these runs: their names, and their directories.

    Args:
      references: curves that were published, to lie beside.

    Raises:
      InputError: a directory holds no run.
    """
    datas = [data(name, directory) for name, directory in runs.items()]
    content = {"runs": datas, "rules": _rules(), "written": time.strftime("%Y-%m-%d %H:%M")}
    content["references"] = [each._asdict() for each in references]
    scripts = (
        f'<script type="application/json" id="samples-{i}">{_safe(text)}</script>'
        for i, text in enumerate(samples(d, _SAMPLE_BYTES // len(runs)) for d in runs.values())
    )
    parts = {
        "TITLE": html.escape(", ".join(runs)),
        "DATA": _safe(json.dumps(files.plain(content), ensure_ascii=False, allow_nan=False)),
        "SAMPLES": "\n".join(scripts),
    }
    template = _TEMPLATE.read_text(encoding="utf-8")
    text = re.sub(r"\$(TITLE|DATA|SAMPLES)\b", lambda found: parts[found[1]], template)
    files.write_durably(path, text.encode("utf-8", "backslashreplace"))


def data(name: str, directory: pathlib.Path) -> dict[str, Any]:
    """What the page shows of a run, but for its responses.

    Raises:
      InputError: the directory holds no run.
    """
    metrics = read_metrics(directory)
    config = json.loads((directory / CONFIG_FILE).read_text())
    planned = {"steps": config["steps"], "rollouts": None}
    with contextlib.suppress(InputError):  # of another version
        known = configs.from_json(json.dumps(config))
        planned["rollouts"] = schedule.planned_rollouts(known)
    warned = [line for _, line in _lines(directory / WARNINGS_FILE)]
    ledger = directory / LEDGER_FILE
    shown = _thinned(metrics)
    keys = dict.fromkeys(key for step in shown for key in step if key not in ("step", "stage"))
    return {
        "name": name,
        "headline": headline(metrics, config["steps"], {line["rule"] for line in warned}),
        "planned": planned,
        "steps": [step["step"] for step in shown],
        "series": {key: [_figure(step.get(key)) for step in shown] for key in keys},
        "reincarnation": report.reincarnation(metrics, "step"),
        "warnings": [
            line | {"metric": RULES[line["rule"]].metric}
            for line in warned
            if line["rule"] in RULES
        ],
        "findings": _findings(warned),
        "checked": (directory / WARNINGS_FILE).exists(),
        "ledger": json.loads(ledger.read_text()) if ledger.exists() else None,
        "config": _flat(config),
        "preset": _difference(config, directory / PRESET_FILE),
    }


def write_preset(directory: pathlib.Path, name: str, config: configs.Config) -> None:
    """Keeps the config that a run's is compared with."""
    saved = {"name": name, "config": json.loads(configs.to_json(config))}
    files.write_durably(directory / PRESET_FILE, json.dumps(saved, indent=2) + "\n")


def headline(metrics: Sequence[Metrics], steps: int, rules: Iterable[str]) -> str:
    """A run in a sentence or two."""
    xs, ys = report.curve(metrics, HELD_OUT, "step")
    done = metrics[-1]["step"] if metrics else 0
    until = f"after {count(done)} of {count(steps)} steps"
    if "rollouts" in (metrics[-1] if metrics else {}):
        until += f" and {count(metrics[-1]['rollouts'])} rollouts"
    if not ys:
        text = f"Nothing was evaluated yet, {until}."
    elif ys[0] == ys[-1]:
        text = f"Held-out accuracy is {percent(ys[0])} as at step {count(xs[0])}, {until}."
    else:
        moved = "rose" if ys[-1] > ys[0] else "fell"
        best = f", at best {percent(max(ys))}" if max(ys) > max(ys[0], ys[-1]) else ""
        text = f"Held-out accuracy {moved} from {percent(ys[0])} to {percent(ys[-1])}"
        text += f"{best}, {until}."
    found = ", ".join(sorted(rules))
    return f"{text} Look at: {found}." if found else text


def samples(directory: pathlib.Path, most: int) -> str:
    """A JSON list of lines of samples.jsonl, of whole steps, up to so many bytes.

    Of the last step, the first, and of steps ever closer together between them.
    """
    path, by_step = directory / SAMPLES_FILE, dict[int, list[bytes]]()
    if not path.exists():
        return "[]"
    places = dict[int, list[tuple[int, int]]]()
    with path.open("rb") as file:  # twice, as the file can be larger than memory
        begin = 0
        for line in file:
            if (found := _STEP.match(line)) and line.endswith(b"\n"):
                places.setdefault(int(found[1]), []).append((begin, len(line)))
            begin += len(line)
        steps, left = sorted(places), most
        for i in sorted(range(len(steps)), key=lambda i: _spread(len(steps) - 1 - i)):
            size = sum(n for _, n in places[steps[i]])
            if size > left and by_step:
                continue
            left -= size
            by_step[steps[i]] = [_line(file, *place) for place in places[steps[i]]]
    kept = (line for step in sorted(by_step) for line in by_step[step])
    return f"[{','.join(line.decode() for line in kept)}]"


def _line(file: Any, begin: int, size: int) -> bytes:
    file.seek(begin)
    return file.read(size).strip()


def _spread(n: int) -> int:
    """The bits of n from the last to the first: of 0 to N the first few lie far from each other."""
    return int(f"{n:032b}"[::-1], 2)


def _lines(path: pathlib.Path) -> Iterable[tuple[bytes, dict[str, Any]]]:
    return files.json_lines(path) if path.exists() else ()


def _thinned(metrics: Sequence[Metrics]) -> list[Metrics]:
    every, end = -(-len(metrics) // _POINTS), len(metrics) - 1
    kept = enumerate(metrics)
    return [step for i, step in kept if i % every == 0 or i == end or HELD_OUT in step]


def _figure(value: Any) -> float | None:
    """Six digits are enough for a curve; what is not finite leaves a gap."""
    finite = isinstance(value, int | float) and math.isfinite(value)
    return float(f"{value:.6g}") if finite else None


def _findings(warned: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A rule each: when it held first and last, at how many checks, what was said last."""
    found: dict[str, dict[str, Any]] = {}
    for line in warned:
        before = found.get(line["rule"], {"first": line["step"], "times": 0})
        now = {"rule": line["rule"], "last": line["step"], "text": line["text"]}
        found[line["rule"]] = before | now | {"times": before["times"] + 1}
    return list(found.values())


def _rules() -> list[dict[str, Any]]:
    return [
        {"metric": r.metric, "low": _figure(r.low), "high": _figure(r.high), "relative": r.relative}
        for r in RULES.values()
    ]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(config, sep=".")


def _difference(config: dict[str, Any], preset: pathlib.Path) -> dict[str, Any]:
    """[field, value of the preset, value] where they differ; without a preset, of the defaults."""
    found = {"name": "the defaults", "config": json.loads(configs.to_json(configs.Config()))}
    if preset.exists():
        found = json.loads(preset.read_text())
    was, now = _flat(found["config"]), _flat(config)
    changed = [[k, was.get(k), value] for k, value in now.items() if was.get(k) != value]
    return {"name": found["name"], "changed": changed}


def _safe(text: str) -> str:
    """JSON that nothing in it can end the script element of."""
    return text.replace("<", "\\u003c")
