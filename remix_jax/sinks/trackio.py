"""trackio, local by default; TRACKIO_PROJECT, TRACKIO_SPACE_ID as trackio reads them."""

import os

import trackio

from remix_jax.sinks.sink import Metrics, Rows, Run, numbers


class Trackio:
    """One run of trackio under the name of the run's directory, continued with it."""

    def __init__(self, run: Run) -> None:
        name = run.known_as("trackio")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", "remix_jax"),
            name=name or run.name,
            config=run.config,
            resume="allow" if name else "never",
            embed=False,
        )
        run.remember("trackio", self._run.name)

    def write(self, step: int, metrics: Metrics) -> None:
        self._run.log(numbers(metrics), step=step)

    def samples(self, step: int, rows: Rows) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        data = [[str(row.get(name, "")) for name in columns] for row in rows]
        self._run.log({"samples": trackio.Table(columns=columns, data=data)}, step=step)

    def close(self) -> None:
        self._run.finish()
