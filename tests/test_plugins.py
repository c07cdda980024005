"""Functions of the user: found, or refused in one line that says what is wrong and where."""

import sys

import pytest

from remix_jax import plugins
from remix_jax.errors import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_function_of_a_file_beside_its_helper(here):
    (here / "own").mkdir()
    (here / "own" / "helper_of_plugin.py").write_text("VALUE = 7\n")
    (here / "own" / "mine.py").write_text("import helper_of_plugin as h\ndef f(): return h.VALUE\n")
    function = plugins.load("own/mine.py:f", "reward.functions")
    assert function() == 7
    assert plugins.load(str(here / "own/mine.py:f"), "x") is function  # imported once
    assert len(plugins.digest(function)) == 16


def test_two_files_of_one_name(here):
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "reward.py").write_text(f"def f(): return {name!r}\n")
    assert [plugins.load(f"{n}/reward.py:f", "x")() for n in "ab"] == ["a", "b"]


def test_a_function_of_a_module_in_the_working_directory(here):
    (here / "package_of_plugin").mkdir()
    (here / "package_of_plugin" / "module.py").write_text("def f(): return 3\n")
    assert plugins.load("package_of_plugin.module:f", "x")() == 3
    assert plugins.load("math:sqrt", "x")(4) == 2
    assert plugins.digest(plugins.load("math:sqrt", "x")) == ""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("nothing", "expected path/to/file.py:function or package.module:function"),
        ("mine.py:", "expected path/to/file.py:function"),
        ("gone.py:f", "no such file"),
        ("mine.py:g", "mine.py has no g; its functions: f"),
        ("mine.py:VALUE", "VALUE is no function but int"),
        ("broken.py:f", "broken.py:2: NameError: name 'nowhere' is not defined"),
        ("syntax.py:f", "syntax.py:1: SyntaxError: '(' was never closed"),
        ("library.py:f", "library.py:3: JSONDecodeError: Expecting value"),
        ("leaves.py:f", "leaves.py:1: SystemExit: 3"),
        ("no.such.module:f", "no module 'no'"),
        ("missing.py:f", "missing.py:1: ModuleNotFoundError: No module named 'surely_not_there'"),
    ],
)
def test_what_cannot_be_loaded(here, spec, said):
    (here / "mine.py").write_text("VALUE = 1\ndef f(): pass\n")
    (here / "broken.py").write_text("\nnowhere\n")
    (here / "syntax.py").write_text("f(\n")
    (here / "library.py").write_text("import json\n\njson.loads('')\n")
    (here / "leaves.py").write_text("raise SystemExit(3)\n")
    (here / "missing.py").write_text("import surely_not_there\n")
    with pytest.raises(InputError) as error:
        plugins.load(spec, "config.reward.functions")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"config.reward.functions = {spec!r}: ")


def test_options():
    assert plugins.split_options("math", "x") == ("math", {})
    assert plugins.split_options("a/b.py:f?n=3&x=.5&y=0.5&flag=true&text=so it is%26b=c", "x") == (
        "a/b.py:f",
        {"n": 3, "x": ".5", "y": 0.5, "flag": True, "text": "so it is&b=c"},
    )
    for bad in ("a?b", "a?b=1&b=2", "a?1=2"):
        with pytest.raises(InputError, match="expected NAME"):
            plugins.split_options(bad, "config.data.train")
