"""Imports point one way: types, config, rl, models, data <- learner, rollout <- run."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = {"errors", "types", "plugins", "text", "files", "streams"}
# room -> what it may import of remix_jax, apart from itself
ALLOWED = {
    "errors": set(),
    "plugins": {"errors"},
    "text": set(),
    "files": {"errors", "text"},
    "types": set(),
    "rl": BASE,
    "config": BASE | {"rl"},
    "config_rules": BASE | {"config", "rl"},
    "sharding": {"errors"},
    "processes": {"errors"},
    "streams": set(),
    "models": BASE | {"sharding"},
    "data": BASE | {"config"},
    "grading": BASE,
    "rewards": BASE | {"data", "grading"},
    "sinks": BASE,
    "reporting": BASE | {"sinks", "run"},
    "learner": BASE | {"config", "rl", "models", "sharding", "processes"},
    "cost": BASE | {"config", "rl", "models", "learner"},
    "rollout": BASE
    | {"cost"}
    | {
        "config",
        "data",
        "grading",
        "learner",
        "models",
        "rewards",
        "rl",
        "sharding",
        "processes",
        "sinks",
    },
    "evaluation": BASE
    | {
        "config",
        "data",
        "grading",
        "learner",
        "models",
        "rollout",
        "sharding",
        "processes",
        "rewards",
        "sinks",
    },
    "run": BASE
    | {"config", "config_rules", "rl", "models", "data", "grading", "learner", "rollout"}
    | {"evaluation", "cost", "sinks", "sharding", "processes"},
}
ORBAX_IMPORTERS = {"remix_jax/run/checkpoint.py"}


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def room_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "remix_jax").parts[0].removesuffix(".py")


FILES = sorted((ROOT / "remix_jax").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    room = room_of(path)
    if room == "__init__":
        return
    rooms = {n.split(".")[1] for n in imported(path) if n.startswith("remix_jax.")}
    assert rooms - {room} <= ALLOWED[room], f"{room} may import {sorted(ALLOWED[room])}"
    assert not any(n.split(".")[0] in ("experiments", "launch", "tests") for n in imported(path))


def test_every_room_is_named():
    assert {room_of(p) for p in FILES} - {"__init__"} == set(ALLOWED)


def test_orbax_has_one_importer_and_torch_none():
    for path in FILES:
        tops = {name.split(".")[0] for name in imported(path)}
        assert "torch" not in tops, path
        if "orbax" in tops:
            assert str(path.relative_to(ROOT)) in ORBAX_IMPORTERS
