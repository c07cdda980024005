"""What a person sees while a run trains: a live panel on a terminal, plain lines everywhere else.

The panel is redrawn by a slow timer from the last figures handed in, so that `write` costs the
training loop next to nothing however fast its steps are.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from remix_jax.text import FORMATS, count, duration, fine, number, percent

PHASES = ("sample", "grade", "learn", "eval", "log")
HELD_OUT = "eval/mean"
NOT_SUITES = (HELD_OUT, "eval/response_length", "eval/grader_timeout_rate")
# Lines of the panel: (label, metric, format, shown in red by) each.
FIGURES: tuple[tuple[str, str, str, Callable[[float], bool]], ...] = (
    ("reward", "reward", "number", lambda x: False),
    ("accuracy", "accuracy", "percent", lambda x: False),
    ("held-out", HELD_OUT, "percent", lambda x: False),
    ("groups of one reward", "zero_variance", "percent", lambda x: x > 0.9),
    ("truncated", "truncated_rate", "percent", lambda x: x > 0.5),
    ("format right", "format_rate", "percent", lambda x: False),
    ("length", "response_length", "number", lambda x: False),
    ("entropy", "entropy", "number", lambda x: False),
    ("KL to base", "kl_base", "number", lambda x: False),
    ("ratio mean", "ratio_mean", "fine", lambda x: False),
    ("ratio max", "ratio_max", "number", lambda x: x > 1000),
    ("clipped", "clip_share", "percent", lambda x: x > 0.3),
    ("ESS", "ess", "percent", lambda x: x < 0.5),
    ("loss", "loss", "number", lambda x: False),
    ("gradient norm", "grad_norm", "number", lambda x: False),
)


def ages(metrics: Mapping[str, object]) -> list[int]:
    """The ages (steps since the row was sampled) of which the metrics of a step have rows."""
    named = {int(key.rpartition("/age")[2]) for key in metrics if "/age" in key}
    return sorted(age for age in named if metrics.get(f"rows/age{age}") != 0)


class Console:
    """A sink that shows the progress of one run, and prints what else there is to say.

    On a terminal: a panel that stays at the bottom, with events printed above it. Elsewhere (a
    pipe, a log file, CI): one line every `every_seconds` and at the last step, and one for every
    evaluation, without control characters.

    Args:
      total_steps: steps of the run, for the bar and the remaining time.
      planned_rollouts: fresh rollouts of the whole run; 0 where unknown.
      file: where to write; standard output by default.
      terminal: force the panel (True) or lines (False); by default what `file` is. Environment
        variables such as FORCE_COLOR change nothing: a log never receives control characters.
      every_seconds: the shortest time between two lines of training figures.
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
        self._rich = RichConsole(
            file=stream, force_terminal=terminal, force_jupyter=False, highlight=False
        )
        self._terminal = terminal and not self._rich.is_dumb_terminal
        self._total_steps, self._planned_rollouts = total_steps, planned_rollouts
        self._every_seconds, self._clock, self._start = every_seconds, clock, clock()
        self._last_line = -math.inf
        self._latest: Mapping[str, Any] = {}
        self._held_out: list[float] = []
        self._sample: Mapping[str, Any] = {}
        self._times: deque[tuple[float, int]] = deque(maxlen=21)
        self._live: Live | None = None

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the figures of one step: the names are those of metrics.jsonl."""
        self._latest = {"step": step} | dict(metrics)
        self._times.append((self._clock(), step))
        if HELD_OUT in metrics:
            self._held_out.append(metrics[HELD_OUT])
        if not self._terminal:
            self._write_lines()
        elif self._live is None:
            self._live = Live(console=self._rich, get_renderable=self._panel, refresh_per_second=2)
            self._live.start()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes responses; the panel shows the first."""
        self._sample = rows[0] if rows else {}

    def event(self, text: str) -> None:
        """Prints one line that stays: a warning, the reincarnation, a file saved."""
        line = Text(f"* {text}", style="bold yellow" if self._terminal else "")
        self._rich.print(line, soft_wrap=True)

    def print(self, renderable: RenderableType) -> None:
        """Prints a table or lines of text that stay, above the live panel if there is one."""
        if isinstance(renderable, str):
            self._rich.print(Text(renderable), soft_wrap=True)
        else:
            self._rich.print(renderable)

    def print_plan(self, plan: Mapping[str, object], title: str = "Plan of the run") -> None:
        """Prints a titled table of names and values, thousands separated."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in plan.items():
            whole = isinstance(value, int) and not isinstance(value, bool)
            table.add_row(Text(name), Text(f"{value:,}" if whole else str(value)))
        self._rich.print(table)

    def close(self) -> None:
        """Takes the panel down, leaving its last state on the screen. Harmless when repeated."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _remaining(self) -> float | None:
        """By the pace of the last twenty steps, so that it follows a change of stage."""
        if len(self._times) < 2 or self._times[-1][1] <= self._times[0][1]:
            return None
        (start, first), (end, last) = self._times[0], self._times[-1]
        return max(0, self._total_steps - last) * (end - start) / (last - first)

    def _get(self, key: str) -> float | None:
        value = self._latest.get(key)
        return float(value) if isinstance(value, int | float) else None

    def _write_lines(self) -> None:
        now = self._clock()
        due = now - self._last_line >= self._every_seconds
        if "reward" in self._latest and (due or self._latest["step"] >= self._total_steps):
            self.print(self._training_line())
            self._last_line = now
        if HELD_OUT in self._latest:
            self.print(self._held_out_line())

    def _training_line(self) -> str:
        get = self._get
        by_age = "/".join(fine(get(f"ratio_mean/age{age}")) for age in ages(self._latest))
        parts = (
            f"step {count(get('step'))}/{self._total_steps} {self._latest.get('stage', '')}",
            f"reward {number(get('reward'))} accuracy {percent(get('accuracy'))}",
            f"length {number(get('response_length'))} truncated {percent(get('truncated_rate'))}",
            f"entropy {number(get('entropy'))} KL {number(get('kl_base'))}",
            f"ratio {by_age or fine(get('ratio_mean'))} max {number(get('ratio_max'))}",
            f"clip {percent(get('clip_share'))} ESS {percent(get('ess'))}",
            f"s: {self._spent()} | left {duration(self._remaining())}",
        )
        return " | ".join(part.strip() for part in parts)

    def _held_out_line(self) -> str:
        suites = " ".join(
            f"{key.removeprefix('eval/')} {percent(self._get(key))}"
            for key in self._latest
            if key.startswith("eval/") and key not in NOT_SUITES
        )
        return (
            f"held-out at step {count(self._get('step'))} | rollouts "
            f"{count(self._get('rollouts'))} | accuracy {percent(self._get(HELD_OUT))} "
            f"(best {percent(max(self._held_out))})" + (f" | {suites}" if suites else "")
        )

    def _spent(self) -> str:
        spent = {phase: self._get(f"seconds/{phase}") for phase in PHASES}
        return " ".join(f"{name} {number(value)}" for name, value in spent.items() if value)

    def _panel(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        for _ in range(3):
            grid.add_column(style="dim", ratio=4, no_wrap=True)
            grid.add_column(justify="right", ratio=3, no_wrap=True)
            grid.add_column(width=1)
        for i in range(0, len(FIGURES), 3):
            grid.add_row(*(cell for figure in FIGURES[i : i + 3] for cell in self._cells(*figure)))
        rows: list[RenderableType] = [self._progress(), grid]
        if self._held_out:
            first, best = self._held_out[0], max(self._held_out)
            rows.append(f"held-out: first {percent(first)}, best {percent(best)}")
        rows.append(f"seconds: {self._spent()}, {count(self._get('tokens_per_second'))} tokens/s")
        if self._sample:
            text = " ".join(str(self._sample.get("response", "")).split())[-160:]
            rows.append(Text(f"reward {self._sample.get('reward')}: ...{text}", style="dim"))
        title = f"training {self._latest.get('stage', '')}".strip()
        return Panel(Group(*rows), title=title, title_align="left", width=min(98, self._rich.width))

    def _cells(self, label: str, key: str, kind: str, is_bad: Callable[[float], bool]) -> tuple:
        value = self._get(key)
        if key == HELD_OUT and self._held_out:
            value = self._held_out[-1]
        bad = value is not None and (not math.isfinite(value) or is_bad(value))
        return label, Text(FORMATS[kind](value), style="bold red" if bad else "bold"), ""

    def _progress(self) -> RenderableType:
        step, planned = self._latest.get("step", 0), f"/ {self._planned_rollouts:,}"
        grid = Table.grid(padding=(0, 2), expand=True)
        for ratio in (None, 1, None, None):
            grid.add_column(no_wrap=True, ratio=ratio)
        grid.add_row(
            f"step [bold]{step:,}[/] / {self._total_steps:,}",
            ProgressBar(total=self._total_steps, completed=step),
            f"rollouts [bold]{count(self._get('rollouts'))}[/] {planned}",
            f"{duration(self._clock() - self._start)} < {duration(self._remaining())}",
        )
        return grid
