"""What a person sees while a run trains: a live panel on a terminal, plain lines everywhere else.

The panel is redrawn by a slow timer from the last figures handed in, so that `update` costs the
training loop next to nothing however fast its steps are.
"""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TextIO

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
AGE_COLUMNS = (
    ("rows", "rows", "count"),
    ("ratio mean", "ratio_mean", "fine"),
    ("ratio max", "ratio_max", "number"),
    ("clip share", "clip_share", "percent"),
    ("ESS", "ess", "percent"),
)
# Lines of the panel: three of (label, metric, format) each.
FIGURES = (
    (
        ("reward", "reward", "number"),
        ("accuracy", "accuracy", "percent"),
        ("held-out", "eval/mean", "percent"),
    ),
    (
        ("length", "response_length", "number"),
        ("truncated", "truncated_rate", "percent"),
        ("format right", "format_rate", "percent"),
    ),
    (
        ("entropy", "entropy", "number"),
        ("KL base", "kl_base", "number"),
        ("KL precedent", "kl_prev", "number"),
    ),
    (
        ("ratio mean", "ratio_mean", "fine"),
        ("ratio max", "ratio_max", "number"),
        ("clip share", "clip_share", "percent"),
    ),
    (("ESS", "ess", "percent"), ("loss", "loss", "number"), ("grad norm", "grad_norm", "number")),
)


def ages(metrics: Mapping[str, object]) -> list[int]:
    """The ages (steps since the row was sampled) of which the metrics of a step have rows."""
    named = {int(key.rpartition("/age")[2]) for key in metrics if "/age" in key}
    return sorted(age for age in named if metrics.get(f"rows/age{age}") != 0)


_NOT_SUITES = ("eval/mean", "eval/response_length", "eval/grader_timeout_rate")


class Console:
    """Shows the progress of one run; the figures come through `update`, one call a step.

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
        if terminal is None:
            terminal = stream.isatty()
        self._rich = RichConsole(
            file=stream, force_terminal=terminal, force_jupyter=False, highlight=False
        )
        self._terminal = terminal and not self._rich.is_dumb_terminal
        self._total_steps = total_steps
        self._planned_rollouts = planned_rollouts
        self._every_seconds = every_seconds
        self._clock = clock
        self._start = clock()
        self._last_line = -math.inf
        self._latest: dict[str, float | str] = {}
        self._evaluation: dict[str, float | str] = {}
        self._best = -math.inf
        self._times: deque[tuple[float, float]] = deque(maxlen=21)
        self._live: Live | None = None

    def update(self, metrics: Mapping[str, float | str]) -> None:
        """Takes the figures of one step: the names are those of metrics.jsonl."""
        self._latest = dict(metrics)
        self._times.append((self._clock(), float(metrics.get("step", 0))))
        if "eval/mean" in metrics:
            self._evaluation = dict(metrics)
            self._best = max(self._best, float(metrics["eval/mean"]))
        if not self._terminal:
            self._write_lines()
        elif self._live is None:
            self._live = Live(console=self._rich, get_renderable=self._panel, refresh_per_second=2)
            self._live.start()

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

    def _seconds_per_step(self) -> float | None:
        """Over the last twenty steps, so that the estimate follows a change of stage."""
        if len(self._times) < 2:
            return None
        (start, first), (end, last) = self._times[0], self._times[-1]
        return (end - start) / (last - first) if last > first else None

    def _remaining(self) -> float | None:
        pace = self._seconds_per_step()
        if pace is None:
            return None
        return max(0.0, self._total_steps - self._times[-1][1]) * pace

    def _get(self, key: str) -> float | None:
        value = self._latest.get(key)
        return float(value) if isinstance(value, int | float) else None

    # Plain lines

    def _write_lines(self) -> None:
        now, step = self._clock(), self._get("step") or 0
        due = now - self._last_line >= self._every_seconds
        if "reward" in self._latest and (due or step >= self._total_steps):
            self._rich.print(Text(self._train_line()), soft_wrap=True)
            self._last_line = now
        if "eval/mean" in self._latest:
            self._rich.print(Text(self._eval_line()), soft_wrap=True)

    def _train_line(self) -> str:
        get = self._get
        by_age = [fine(get(f"ratio_mean/age{age}")) for age in ages(self._latest)]
        spent = {phase: get(f"seconds/{phase}") for phase in PHASES}
        parts = (
            f"step {count(get('step'))}/{self._total_steps} {self._latest.get('stage', '')}",
            f"rollouts {count(get('rollouts'))}",
            f"reward {number(get('reward'))} accuracy {percent(get('accuracy'))}",
            f"length {number(get('response_length'))}",
            f"entropy {number(get('entropy'))}",
            f"KL {number(get('kl_base'))} base {number(get('kl_prev'))} prev",
            f"ratio {fine(get('ratio_mean'))} max {number(get('ratio_max'))}"
            + (f" by age {'/'.join(by_age)}" if len(by_age) > 1 else ""),
            f"clip {percent(get('clip_share'))} ESS {percent(get('ess'))}",
            "s: " + " ".join(f"{name} {number(value)}" for name, value in spent.items() if value),
            f"{count(get('tokens_per_second'))} tokens/s",
            f"left {duration(self._remaining())}",
        )
        return " | ".join(part.strip() for part in parts)

    def _eval_line(self) -> str:
        suites = " ".join(
            f"{key.removeprefix('eval/')} {percent(self._get(key))}"
            for key in self._latest
            if key.startswith("eval/") and key not in _NOT_SUITES
        )
        return (
            f"held-out at step {count(self._get('step'))} | rollouts "
            f"{count(self._get('rollouts'))} | accuracy {percent(self._get('eval/mean'))} "
            f"(best {percent(self._best)})" + (f" | {suites}" if suites else "")
        )

    # The panel

    def _panel(self) -> RenderableType:
        rows = [self._progress(), self._figures()]
        if ages(self._latest):
            rows.append(self._by_age())
        rows.append(self._phases())
        stage = self._latest.get("stage")
        title = f"training, stage: {stage}" if stage else "training"
        return Panel(Group(*rows), title=title, title_align="left", width=min(98, self._rich.width))

    def _progress(self) -> RenderableType:
        step, rollouts = self._get("step") or 0, count(self._get("rollouts"))
        planned = f" / {self._planned_rollouts:,}" if self._planned_rollouts else ""
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_row(
            f"step [bold]{step:,.0f}[/] / {self._total_steps:,}",
            ProgressBar(total=self._total_steps, completed=step),
            f"rollouts [bold]{rollouts}[/]{planned}",
            f"{duration(self._clock() - self._start)} < {duration(self._remaining())}",
        )
        return grid

    def _figures(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1), expand=True)
        for _ in range(3):
            grid.add_column(style="dim", ratio=4, no_wrap=True)
            grid.add_column(justify="right", ratio=3, no_wrap=True)
            grid.add_column(width=1)
        for row in FIGURES:
            cells: list[RenderableType] = []
            for label, key, kind in row:
                source = self._evaluation if key == "eval/mean" else self._latest
                value = source.get(key)
                value = float(value) if isinstance(value, int | float) else None
                bad = value is not None and not math.isfinite(value)
                cells += [
                    label,
                    Text(FORMATS[kind](value), style="bold red" if bad else "bold"),
                    "",
                ]
            grid.add_row(*cells)
        if self._evaluation:
            grid.add_row(*[""] * 6, "best so far", percent(self._best), "")
        return grid

    def _by_age(self) -> RenderableType:
        table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
        table.add_column("age of the row", no_wrap=True)
        for title, _, _ in AGE_COLUMNS:
            table.add_column(title, justify="right", no_wrap=True, min_width=7)
        for age in ages(self._latest):
            cells = [FORMATS[kind](self._get(f"{key}/age{age}")) for _, key, kind in AGE_COLUMNS]
            table.add_row("fresh" if age == 0 else f"{age} step{'s' if age > 1 else ''}", *cells)
        return table

    def _phases(self) -> RenderableType:
        text = Text("seconds ", style="dim")
        for phase in PHASES:
            if self._get(f"seconds/{phase}"):
                text.append(f"  {phase} ", style="dim")
                text.append(number(self._get(f"seconds/{phase}")), style="bold")
        text.append("   tokens/s ", style="dim")
        text.append(count(self._get("tokens_per_second")), style="bold")
        return text
