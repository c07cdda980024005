"""Imports point one way: a package knows those below it, and none beside it or above."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# From below to above (docs/architecture.md).
LEVELS = (
    {"errors", "text", "types", "streams"},
    {"plugins", "files", "sharding", "processes", "device_memory"},
    {"rl", "models"},
    {"config"},
    {"data", "schedule"},
    {"config_rules", "rewards"},
    {"learner", "sinks"},
    {"cost"},
    {"rollout"},
    {"evaluation"},
    {"run"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
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


def package_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT / "remix_jax").parts[0].removesuffix(".py")


FILES = sorted((ROOT / "remix_jax").rglob("*.py"))
GRADER = sorted((ROOT / "math_grader").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_import_only_what_lies_below(path):
    name = package_of(path)
    if name == "__init__":
        return
    found = {n.split(".")[1] for n in imported(path) if n.startswith("remix_jax.")} - {name}
    above = {other for other in found if LEVEL[other] >= LEVEL[name]}
    assert not above, f"{name} lies below {sorted(above)}, or beside"
    assert not any(n.split(".")[0] in ("experiments", "launch", "tests") for n in imported(path))


def test_every_package_has_a_level():
    assert {package_of(p) for p in FILES} - {"__init__"} == set(LEVEL)


def test_the_grader_knows_nothing_of_the_trainer_and_no_jax():
    for path in GRADER:
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"remix_jax", "experiments", "jax", "flax"}, path


def test_orbax_has_one_importer_and_torch_none():
    for path in FILES:
        tops = {name.split(".")[0] for name in imported(path)}
        assert "torch" not in tops, path
        if "orbax" in tops:
            assert str(path.relative_to(ROOT)) in ORBAX_IMPORTERS
