"""The sheet of figures of a run."""

import json

import pytest
from matplotlib.image import imread

from experiments import overview
from remix_jax.errors import InputError
from remix_jax.run import loop
from remix_jax.run.checkpoint import SaveError
from tests.run.fake_bucket import bucket
from tests.run.records import training


def assert_png(path, width):
    pixels = imread(path)
    assert pixels.shape[1] >= width
    assert pixels[..., :3].std() > 0.02, f"{path} is blank"


def test_the_sheet_is_drawn(tmp_path):
    path = overview.draw(training(), tmp_path / "figures")
    assert [p.name for p in path.parent.iterdir()] == ["overview.png"]
    assert_png(path, width=1800)


def test_the_sheet_of_a_run_that_ended_at_once(tmp_path):
    for run in ([], training()[:1], training()[:2]):
        assert overview.draw(run, tmp_path).stat().st_size > 3000


def panel_of(title, run):
    axis = overview.Figure().subplots()
    (panel,) = [panel for panel in overview.PANELS if panel.title == title]
    overview.draw_panel(axis, panel, run)
    return axis


def test_the_mix_stage_ends_at_a_place_on_every_axis():
    run = training(mix=12)
    for x, expected in (("step", 12), ("rollouts", 924), ("seconds", pytest.approx(2.4))):
        assert overview.reincarnation(run, x) == expected
    assert overview.reincarnation(training(mix=0), "step") is None


def test_dashed_line_stands_at_the_end_of_the_mix_stage():
    axis = panel_of("KL divergence", training(mix=12))
    assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == "--"] == [12]


def test_curves_are_the_numbers_of_the_run():
    run = training()
    axis = panel_of("Held-out accuracy", run)
    (mean,) = [line for line in axis.lines if line.get_marker() == "o"]
    assert list(mean.get_xdata()) == [r["rollouts"] for r in run if "eval/mean" in r]
    assert list(mean.get_ydata()) == [r["eval/mean"] for r in run if "eval/mean" in r]
    assert axis.get_legend_handles_labels()[1] == ["short", "long", "mean"]
    _, ages = panel_of("Importance ratio, mean", run).get_legend_handles_labels()
    assert ages == ["fresh", "1 step old", "2 steps old"]
    stack = panel_of("Seconds spent, by phase", run)
    assert stack.dataLim.ymax == pytest.approx(8.0)


def test_running_mean_stops_at_the_reincarnation():
    run = [
        {"step": k, "stage": "mix" if k <= 60 else "on-policy", "kl_base": float(k <= 60)}
        for k in range(1, 121)
    ]
    axis = panel_of("KL divergence", run)
    (smooth,) = [line for line in axis.lines if line.get_label() == "to the base"]
    assert list(smooth.get_ydata()) == [1.0] * 60 + [0.0] * 60


def record(workdir):
    """Writes metrics.jsonl of a run."""
    workdir.mkdir(parents=True)
    lines = [json.dumps(row).replace("NaN", '"NaN"') + "\n" for row in training()]
    (workdir / "metrics.jsonl").write_text("".join(lines))


@pytest.mark.parametrize("ended", ["well", "preempted", "at once", "fault", "unsaved"])
def test_the_sheet_is_drawn_at_the_end_of_a_run(ended, tmp_path, monkeypatch, capsys):
    """Not where the process is to be killed soon, nor without a step."""
    errors = {"fault": loop.FaultError("step 3: loss", "x=1", 2), "unsaved": SaveError("full")}

    def run(config, workdir, artifacts):
        assert (config, artifacts) == ("config", True)
        record(workdir)
        if ended in errors:
            raise errors[ended]
        metrics = training()[:1] if ended == "at once" else training()
        return loop.Outcome(metrics, ended != "well", ended == "preempted")

    monkeypatch.setattr(loop, "run", run)
    monkeypatch.setattr(overview, "draw", lambda _, directory: directory.mkdir())
    workdir = tmp_path / "run"
    if ended in errors:
        with pytest.raises(type(errors[ended])):
            overview.run("config", workdir, artifacts=True)
    else:
        assert overview.run("config", workdir, artifacts=True).stopped == (ended != "well")
    drawn = ended not in ("preempted", "at once")
    assert (workdir / "figures").exists() == drawn
    assert (f"* the figures are in {workdir}/figures\n" == capsys.readouterr().out) == drawn


def test_the_sheet_of_a_run_in_a_bucket_goes_there_and_nothing_else(tmp_path, monkeypatch):
    """The run may go on: its record, which has grown meanwhile, is not written over."""
    with bucket(tmp_path / "root", monkeypatch) as there:
        record(there / "runs" / "a")
        draw = overview.draw

        def slowly(metrics, directory):
            (there / "runs" / "a" / "metrics.jsonl").write_text("more\n")
            return draw(metrics, directory)

        monkeypatch.setattr(overview, "draw", slowly)
        overview.draw_run("gs://bucket/runs/a")
        assert_png(there / "runs" / "a" / "figures" / "overview.png", width=1800)
        assert (there / "runs" / "a" / "metrics.jsonl").read_text() == "more\n"
        with pytest.raises(InputError, match=r"gs://bucket/b: no metrics.jsonl of a run is there"):
            overview.draw_run("gs://bucket/b")
