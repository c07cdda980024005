"""What a person sees while a run trains: a live panel on a terminal, plain lines everywhere else.

A slow timer redraws the panel from the last figures: `write` costs the loop next to nothing.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.columns import Columns
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from remix_jax.sinks.health import is_red
from remix_jax.text import MISSING, count, duration, number, percent

PHASES = ("sample", "grade", "learn", "eval", "log")
HELD_OUT = "eval/mean"
NOT_SUITES = (HELD_OUT, "eval/response_length", "eval/grader_timeout_rate")
RATIO = "{:.4f}".format  # its drift from 1 matters
FIGURES = (  # metric, label, format
    ("reward", "reward", number),
    ("accuracy", "accuracy", percent),
    ("response_length", "length", number),
    ("truncated_rate", "truncated", percent),
    ("entropy", "entropy", number),
    ("kl_base", "KL to base", number),
    ("ratio_mean", "ratio mean", RATIO),
    ("ratio_max", "ratio max", number),
    ("clip_share", "clipped", percent),
    ("ess", "ESS", percent),
    ("loss", "loss", number),
    ("grad_norm", "gradient norm", number),
    ("format_rate", "format right", percent),
    ("zero_variance", "zero variance", percent),
)
IN_LINE = FIGURES[:10]  # the others are in the panel alone


def ages(metrics: Mapping[str, object]) -> list[int]:
    """The ages (steps since the row was sampled) of which the metrics of a step have rows."""
    named = {int(key.rpartition("/age")[2]) for key in metrics if "/age" in key}
    return sorted(age for age in named if metrics.get(f"rows/age{age}") != 0)


class Console:
    """A sink that shows the progress of one run, and prints what else there is to say.

    On a terminal: a panel that stays at the bottom, with events printed above it. Elsewhere (a
    pipe, a log file, CI): one line every `every_seconds` and at the last step, and one for every
    evaluation; never control characters, whatever FORCE_COLOR and the like say.

    Args:
      total_steps, planned_rollouts: of the whole run; 0 where unknown.
      file: where to write; standard output by default.
      terminal: force the panel (True) or lines (False); by default what `file` is.
      clock: seconds as a float; tests hand in their own.
    """

    def __init__(
        self,
        total_steps: int,
        planned_rollouts: int = 0,
        *,
        file: TextIO | None = None,
        terminal: bool | None = None,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = sys.stdout if file is None else file
        terminal = stream.isatty() if terminal is None else terminal
        plain: Any = dict.fromkeys(("force_jupyter", "highlight", "markup", "emoji"), False)
        self._rich = RichConsole(file=stream, force_terminal=terminal, **plain)
        self._terminal = terminal and not self._rich.is_dumb_terminal
        self._total_steps, self._planned_rollouts = total_steps, planned_rollouts
        self._every_seconds, self._clock, self._start = every_seconds, clock, clock()
        self._last_line = -math.inf
        self._latest: dict[str, Any] = {"step": 0}
        self._held_out: list[float] = []
        self._sample: Mapping[str, Any] = {}
        self._times: deque[tuple[float, int]] = deque(maxlen=21)
        self._live = Live(console=self._rich, get_renderable=self._panel, refresh_per_second=2)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the figures of one step: the names are those of metrics.jsonl."""
        self._latest, now = {"step": step} | dict(metrics), self._clock()
        self._times.append((now, step))
        if HELD_OUT in metrics:
            self._held_out.append(metrics[HELD_OUT])
        if self._terminal:
            self._live.start()
            return
        due = now - self._last_line >= self._every_seconds or step >= self._total_steps
        if "reward" in metrics and due:
            self._last_line = now
            self.print(self._training_line())
        if HELD_OUT in metrics:
            rollouts = count(metrics.get("rollouts"))
            self.print(f"held-out at step {step:,} | rollouts {rollouts} | {self._held_out_text()}")

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes responses; the panel shows the first."""
        self._sample = rows[0] if rows else {}

    def event(self, text: str) -> None:
        """Prints one line that stays: the reincarnation, a file saved."""
        style = "bold yellow" if self._terminal else ""
        self._rich.print(f"* {text}", style=style, soft_wrap=True)

    def warning(self, text: str) -> None:
        """Prints one line that stays: what is wrong with the run (`health`)."""
        self._rich.print(f"! {text}", style="bold red" if self._terminal else "", soft_wrap=True)

    def print(self, renderable: RenderableType) -> None:
        """Prints a table or lines of text that stay, above the live panel if there is one."""
        self._rich.print(renderable, soft_wrap=isinstance(renderable, str))

    def print_plan(self, plan: Mapping[str, object], title: str = "Plan of the run") -> None:
        """Prints a titled table of names and values, thousands separated."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in plan.items():
            table.add_row(name, f"{value:,}" if type(value) is int else str(value))
        self._rich.print(table)

    def close(self) -> None:
        """Takes the panel down, leaving its last state on the screen. Harmless when repeated."""
        self._live.stop()

    def _remaining(self) -> float | None:
        """By the pace of the last twenty steps, so that it follows a change of stage."""
        if len(self._times) < 2 or self._times[-1][1] <= self._times[0][1]:
            return None
        (start, first), (end, last) = self._times[0], self._times[-1]
        return max(0, self._total_steps - last) * (end - start) / (last - first)

    def _training_line(self) -> str:
        latest = self._latest
        parts = [f"step {latest['step']:,}/{self._total_steps} {latest.get('stage', '')}".strip()]
        parts += [f"{label} {form(latest[key])}" for key, label, form in IN_LINE if key in latest]
        by_age = [latest.get(f"ratio_mean/age{age}", math.nan) for age in ages(latest)]
        parts += [f"ratio by age {'/'.join(map(RATIO, by_age))}"] if by_age else []
        return " | ".join([*parts, self._seconds(), f"left {duration(self._remaining())}"])

    def _held_out_text(self) -> str:
        first, last = percent(self._held_out[0]), percent(self._held_out[-1])
        parts = [f"accuracy {last} (first {first}, best {percent(max(self._held_out))})"]
        for key, value in self._latest.items():
            if key.startswith("eval/") and key not in NOT_SUITES:
                parts.append(f"{key.removeprefix('eval/')} {percent(value)}")
        return " | ".join(parts)

    def _seconds(self) -> str:
        spent = {phase: self._latest.get(f"seconds/{phase}") for phase in PHASES}
        return "s: " + " ".join(f"{name} {number(value)}" for name, value in spent.items() if value)

    def _panel(self) -> RenderableType:
        latest, step = self._latest, self._latest["step"]
        top = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None):
            top.add_column(no_wrap=True, ratio=ratio)
        top.add_row(
            f"step {step:,} / {self._total_steps:,}",
            ProgressBar(total=self._total_steps, completed=step),
            f"rollouts {count(latest.get('rollouts'))} / {self._planned_rollouts:,}",
            f"{duration(self._clock() - self._start)} < {duration(self._remaining())}",
        )
        cells = []
        for key, label, form in FIGURES:
            shown, style = MISSING, "bold"
            if (value := latest.get(key)) is not None:
                red = not math.isfinite(value) or is_red(key, value)
                shown, style = form(value), "bold red" if red else "bold"
            cells.append(Text.assemble((f"{label} ", "dim"), (shown, style)))
        rows: list[RenderableType] = [top, Columns(cells, equal=True, expand=True)]
        if self._held_out:
            rows.append(f"held-out {self._held_out_text()}")
        rows.append(f"{self._seconds()} | {count(latest.get('tokens_per_second'))} tokens/s")
        if self._sample:
            text = " ".join(str(self._sample.get("response", "")).split())[-160:]
            rows.append(Text(f"reward {self._sample.get('reward')}: ...{text}", style="dim"))
        title = f"training {latest.get('stage', '')}".strip()
        return Panel(Group(*rows), title=title, title_align="left", width=min(98, self._rich.width))
