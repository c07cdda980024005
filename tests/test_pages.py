"""docs/python.md and docs/samplers.md as a reader would follow them, in one directory."""

import pytest

import remix_jax
from remix_jax.errors import InputError
from tests import doc_pages


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The names that are left when every block of docs/python.md has run; the directory."""
    directory, names = tmp_path_factory.mktemp("notebook"), {}
    doc_pages.write_named("docs/python.md", directory)
    doc_pages.write_named("docs/samplers.md", directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for code in doc_pages.blocks("docs/python.md", "python"):
            if not code.startswith("def "):
                exec(compile(code, "docs/python.md", "exec"), names)
    return names, directory


def test_the_page_on_python_trains_evaluates_and_samples(notebook):
    names, directory = notebook
    steps = names["outcome"].metrics
    assert [row["step"] for row in steps] == [0, 1, 2]
    for row in steps[1:]:
        weighted = row["reward/math"] + 0.1 * row["reward/short"]
        assert row["reward"] == pytest.approx(weighted, abs=1e-5)
    assert 0 < steps[1]["reward/short"] < 1
    assert names["figures"]
    assert (directory / "copy" / "model.safetensors").read_bytes() == (
        directory / "runs/notebook/export/model.safetensors"
    ).read_bytes()
    assert names["sampled"].tokens_BS.shape == (4, 32)


def test_the_page_on_samplers_trains_with_its_own(notebook, monkeypatch, capsys):
    names, directory = notebook
    config = names["config"]
    monkeypatch.chdir(directory)
    config.sampling.engine, config.steps = "my_sampler.py:make", 1
    outcome = remix_jax.train(config, "runs/engine")
    fresh = outcome.metrics[1]["n_fresh"]
    assert f"\n{fresh:.0f} responses, " in capsys.readouterr().out
    assert outcome.metrics[1]["response_length"] > 1


def test_a_sampler_of_other_shapes_is_refused(notebook, monkeypatch, tmp_path):
    config, directory = notebook[0]["config"], notebook[1]
    (directory / "short.py").write_text(
        "from remix_jax.rollout import sampler\n"
        "def make(policy, task, mesh):\n"
        "    draw = sampler.compiled(policy, task, mesh)\n"
        "    def sample(params, prompts, key):\n"
        "        sampled = draw(params, prompts, key)\n"
        "        return sampled._replace(behav_logp_BT=sampled.behav_logp_BT[:, 1:])\n"
        "    return sample\n"
    )
    monkeypatch.chdir(directory)
    config.sampling.engine = "short.py:make"
    with pytest.raises(InputError, match="behav_logp_BT is of shape"):
        remix_jax.train(config, tmp_path / "run")
    config.sampling.engine = "short.py:made"
    with pytest.raises(InputError, match="its functions: make"):
        remix_jax.train(config, tmp_path / "other")
