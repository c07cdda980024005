"""report.html: its data are the run's files, whatever a model wrote; what a browser makes of it."""

import html.parser
import json
import math
import pathlib
import shutil
import subprocess

import pytest

from experiments.report import __main__ as command
from remix_jax import config as configs
from remix_jax.errors import InputError
from remix_jax.run import page
from tests.doc_pages import ROOT
from tests.run.fake_bucket import bucket
from tests.run.records import training

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
HOSTILE = "</script><b>$DATA</b><!-- <script> \u2028 \\boxed{1} \"'&amp;"


def config_of(**changes):
    config = configs.Config(steps=40)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def sample(step, **more):
    """A line of samples.jsonl: of a replayed row, with numbers of its tokens."""
    tokens = {"text": ["so ", HOSTILE], "ratio": [1.5, 0.9], "entropy": [0.2, 1.0]}
    return {
        "step": step, "problem": "1 + 1 =", "prompt": f"<|user|>{HOSTILE}", "response": HOSTILE,
        "reward": 1.0, "correct": True, "answer": "2", "answers": ["2"], "verdict": "match",
        "truncated": False, "parts": {"math": 1.0, "short": 0.5}, "age": 0,
        "tokens": tokens | {"advantage": [0.5, 0.5], "logp": [-0.1, -2.0]},
    } | more  # fmt: skip


SAMPLES = [
    sample(40),
    sample(40, age=2, verdict="", correct=False, reward=0.0),
    sample(40, truncated=True, correct=False, reward=0.0, verdict="no-box", answer=None),
    {"step": 40, "held_out": "short", "prompt": "held", "response": "out", "reward": 0.0,
     "correct": False, "answers": ["3"], "verdict": "wrong", "truncated": False},
    sample(1, response="early"),
]  # fmt: skip
WARNINGS = [
    {"step": 0, "rule": "held-out is trained on", "text": "2 of 4"},
    {"step": 10, "rule": "few tokens count", "text": "ess 0.3"},
    {"step": 40, "rule": "few tokens count", "text": f"ess 0.4 {HOSTILE}"},
]


def lines(rows):
    return "".join(json.dumps(row).replace("NaN", '"NaN"') + "\n" for row in rows)


def write_run(directory, metrics=None, **changes):
    """The files of a run."""
    directory.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text(lines(metrics or training()))
    (directory / "samples.jsonl").write_text(lines(sorted(SAMPLES, key=lambda s: s["step"])))
    (directory / "warnings.jsonl").write_text(lines(WARNINGS))
    (directory / "config.json").write_text(configs.to_json(config_of(**changes)))
    return directory


class _Scripts(html.parser.HTMLParser):
    """The text of every script element by its id, as a browser finds their ends."""

    def __init__(self, text):
        super().__init__()
        self.found, self.tags, self._id = {}, [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id", "code") if tag == "script" else None

    def handle_data(self, data):
        if self._id is not None:
            self.found[self._id] = self.found.get(self._id, "") + data

    def handle_endtag(self, tag):
        self._id = None


def read(path):
    text = path.read_text()
    return _Scripts(text), text


def test_the_data_are_those_of_the_files(tmp_path):
    run = write_run(tmp_path / "run", seed=3)
    fates = [{"fate": "trained on in 1 pass", "rows": 35, "share": 1.0}]
    (run / "ledger.json").write_text(json.dumps(fates))
    page.write_preset(run, "mine.py", config_of(seed=1))
    page.write({"run": run}, run / page.PAGE)
    scripts, _ = read(run / page.PAGE)
    (found,) = json.loads(scripts.found["data"])["runs"]
    metrics = training()
    assert found["steps"] == [record["step"] for record in metrics]
    for key in ("reward", "eval/mean", "ess/age1", "seconds/learn"):
        values = [record.get(key) for record in metrics]
        assert found["series"][key] == [
            v if v is None else pytest.approx(v, rel=1e-5) for v in values
        ]
    assert found["series"]["grad_norm"][5] is None, "NaN leaves a gap"
    assert found["reincarnation"] == 12
    assert found["ledger"] == fates
    assert found["preset"] == {"name": "mine.py", "changed": [["seed", 1, 3]]}
    assert found["config"]["objective.clip"] == 0.2
    (before, lasting) = found["findings"]
    assert (before["first"], before["last"]) == (0, 0)
    assert (lasting["rule"], lasting["first"], lasting["last"], lasting["times"]) == (
        "few tokens count",
        10,
        40,
        2,
    )
    assert lasting["text"] == WARNINGS[-1]["text"]
    assert [w["metric"] for w in found["warnings"]] == ["ess"] * 2
    assert "Look at: few tokens count, held-out is trained on." in found["headline"]
    shown = json.loads(scripts.found["samples-0"])
    assert shown == sorted(SAMPLES, key=lambda s: s["step"])


def test_nothing_that_is_written_is_markup_and_nothing_is_fetched(tmp_path):
    run = write_run(tmp_path / "<b>run")
    page.write({"<b>$DATA": run}, run / page.PAGE)
    scripts, text = read(run / page.PAGE)
    assert set(scripts.found) == {"data", "samples-0", "code"}
    assert {tag for tag, _ in scripts.tags} == {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "main"),
        *("noscript", "footer", "script"),
    }
    assert not any({"src", "href"} & set(attributes) for _, attributes in scripts.tags)
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert "<title>&lt;b&gt;$DATA</title>" in text


def test_a_page_of_a_run_that_goes_on(tmp_path):
    """Half a line at the end of each file; no ledger, no preset; nothing evaluated."""
    run = write_run(tmp_path / "run", metrics=training()[1:4])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (run / name).open("a") as file:
            file.write('{"step": 41, "rew')
    with pytest.warns(UserWarning, match="half-written"):
        page.write({"run": run}, run / page.PAGE)
    scripts, _ = read(run / page.PAGE)
    (found,) = json.loads(scripts.found["data"])["runs"]
    assert found["headline"].startswith("Nothing was evaluated yet, after 3 of 40 steps and 231")
    assert found["ledger"] is None
    assert found["preset"]["name"] == "the defaults"
    assert len(json.loads(scripts.found["samples-0"])) == len(SAMPLES)
    assert page.data("run", run)["planned"]["rollouts"] == 6144
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"of another version": 1}))
    assert page.data("run", run)["planned"] == {"steps": 40, "rollouts": None}
    for name in ("metrics.jsonl", "samples.jsonl", "warnings.jsonl"):
        (run / name).write_text("")
    assert page.data("run", run)["steps"] == []
    assert page.samples(run, 100) == "[]"


def test_headlines():
    def said(*accuracies):
        metrics = [{"step": i, "eval/mean": a} for i, a in enumerate(accuracies)]
        return page.headline(metrics, 9, [])

    assert said(0.2, 0.3) == "Held-out accuracy rose from 20.0 % to 30.0 %, after 1 of 9 steps."
    fell = "Held-out accuracy fell from 20.0 % to 10.0 %, at best 30.0 %, after 2 of 9 steps."
    assert said(0.2, 0.3, 0.1) == fell
    assert said(0.2) == "Held-out accuracy is 20.0 % as at step 0, after 0 of 9 steps."
    assert said(0.2, math.nan, 0.3).startswith("Held-out accuracy rose from 20.0 % to 30.0 %")


def test_responses_of_whole_steps_spread_over_the_run(tmp_path):
    run = write_run(tmp_path / "run")
    rows = [{"step": step, "response": "x" * 100} for step in range(1, 33) for _ in range(2)]
    (run / "samples.jsonl").write_text(lines(rows))
    size = len(lines(rows[:2]))
    for number, expected in ((1, [32]), (2, [16, 32]), (4, [8, 16, 24, 32]), (99, range(1, 33))):
        found = json.loads(page.samples(run, number * (size + 2)))
        assert [row["step"] for row in found] == [s for s in expected for _ in range(2)]
    assert len(json.loads(page.samples(run, 10))) == 2, "of the last step in any case"


def test_a_long_run_is_thinned_but_for_its_evaluations(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_POINTS", 10)
    steps = page.data("run", write_run(tmp_path / "run"))["steps"]
    assert steps == sorted({*range(0, 41, 5), *range(0, 41, 4)})


def test_several_runs_are_one_page(tmp_path, capsys):
    runs = {str(tmp_path / name): write_run(tmp_path / name) for name in "ab"}
    command.write_page(runs, str(tmp_path / "both"))
    assert capsys.readouterr().out == f"{tmp_path}/both/report.html\n"
    scripts, _ = read(tmp_path / "both" / page.PAGE)
    assert [r["name"] for r in json.loads(scripts.found["data"])["runs"]] == list(runs)
    assert {"samples-0", "samples-1"} <= set(scripts.found)


def test_the_page_of_a_run_in_a_bucket_goes_there_and_nothing_else(tmp_path, monkeypatch, capsys):
    """The run may go on: its record, which has grown meanwhile, is not written over."""
    with bucket(tmp_path / "root", monkeypatch) as there:
        run, write = write_run(there / "runs" / "a"), page.write

        def slowly(*arguments):
            (run / "metrics.jsonl").write_text("more\n")
            write(*arguments)

        monkeypatch.setattr(page, "write", slowly)
        command.experiment("gs://bucket/runs/a")
        assert capsys.readouterr().out == "gs://bucket/runs/a/report.html\n"
        assert json.loads(read(run / page.PAGE)[0].found["data"])["runs"][0]["name"] == "a"
        assert (run / "metrics.jsonl").read_text() == "more\n"
        with pytest.raises(InputError, match=r"neither a run's metrics.jsonl nor comparison.json"):
            command.experiment(str(tmp_path / "root"))


# In a browser


PROBE = pathlib.Path(__file__).with_name("page_probe.js")


def in_browser(path, width, dark):
    """What the probe found on the page."""
    text = path.read_text()
    probed = path.with_name("probed.html")
    probed.write_text(text.replace("<body>", f"<body><script>{PROBE.read_text()}</script>"))
    flags = ["--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars"]
    flags += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={1 - dark}"]
    flags += ["--headless=new"] * (not BROWSER.endswith("shell"))
    done = subprocess.run(
        [BROWSER, *flags, "--dump-dom", probed.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert said == [], "the console is silent"
    text = done.stdout.partition('<pre id="probe">')[2].partition("</pre>")[0]
    return json.loads(html.unescape(text))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_in_a_browser(width, dark, tmp_path):
    run = write_run(tmp_path / "run")
    page.write({"run": run}, run / page.PAGE)
    found = in_browser(run / page.PAGE, width, dark)
    assert found["errors"] == []
    assert found["wide"] <= 0, "nothing is wider than the window"
    assert (
        max(map(int, found["paper"][4:-1].split(","))) < 64
        if dark
        else found["paper"] == "rgb(251, 251, 250)"
    )
    titles = [
        "Held-out accuracy",
        "Training reward",
        "Effective sample size",
        "Entropy of the policy",
    ]
    assert set(titles) <= set(found["titles"])
    assert found["panels"] > 20
    assert found["bold"] == 6, "4 tiles and 2 findings; not what a model wrote"
    assert found["red"] == 6, "of ESS, ratios (mean: two), clipped tokens and entropy"
    assert found["marks"] == ["ess 0.3", f"ess 0.4 {HOSTILE}"]
    assert len(found["first"]) == 3, "of training, of the last step"
    assert HOSTILE in found["first"][0]
    assert "expected 2" in found["first"][0]
    counts = [found[name] for name in ("wrong", "truncated", "old", "held_out", "early")]
    assert counts == [2, 1, 1, 1, 1]
    washes = found["washes"]
    assert washes.pop("none") is None
    assert len(set(washes.values()) - {None}) == 4, "ratio, entropy, advantage, log-probability"
    assert "4,508" in found["axis"], "rollouts on the axis"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_page_of_two_runs_in_a_browser(tmp_path):
    runs = {name: write_run(tmp_path / name, seed=i) for i, name in enumerate("ab")}
    page.write(runs, tmp_path / page.PAGE, [page.read_reference(published(tmp_path))])
    found = in_browser(tmp_path / page.PAGE, 1280, dark=False)
    assert found["errors"] == []
    assert len(found["first"]) == 6
    assert found["panels"] > 10
    assert "rollouts" in found["axis"] or "," in found["axis"]
    text = (tmp_path / "probed.html").read_text()
    assert "a paper, its page 3" in text


def published(directory):
    figures = {"eval/mean": [[0, 0.1], [1000, 0.3], [2000, 0.5], [10**6, 0.9]]}
    file = directory / "published.json"
    given = {"name": "they", "source": "a paper, its page 3", "figures": figures}
    file.write_text(json.dumps(given))
    return file


def test_published_curves_lie_beside(tmp_path):
    run, file = write_run(tmp_path / "run"), published(tmp_path)
    command.experiment(str(run), references=[str(file)])
    (found,) = json.loads(read(run / page.PAGE)[0].found["data"])["references"]
    assert found == json.loads(file.read_text())
    shipped = page.read_reference(ROOT / "experiments/references/verl_gsm8k_ppo.json")
    assert shipped.figures["eval/mean"][2] == [7680, 0.458]
    for text in ('{"name": "x"}', "[]", '{"name": "", "source": "", "figures": {"a": [1]}}', "{"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"published\.json: no reference \(.*expected an obj"):
            page.read_reference(file)
