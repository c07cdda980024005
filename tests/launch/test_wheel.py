"""What pip builds of the checkout: both packages whole, their types, and what it says it needs."""

import email
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PACKAGES = "math_grader", "remix_jax"
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def built(kind, source, out):
    """A file that setuptools builds of a source tree, as pip and `python -m build` ask for it."""
    call = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(call, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of the source archive, so that nothing which only the checkout has can go into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    ignored = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source)
    with tarfile.open(built("build_sdist", source, out)) as archive:
        archive.extractall(out, filter="data")
    (unpacked,) = out.glob("remix_jax-*/")
    with zipfile.ZipFile(built("build_wheel", unpacked, out)) as found:
        yield found


def test_a_wheel_has_every_module_and_nothing_else(wheel):
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file()]
    modules = {str(path.relative_to(ROOT)) for path in files if path.suffix == ".py"}
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    data = {f"{name}/py.typed" for name in PACKAGES} | {"remix_jax/run/report.html"}
    assert names == modules | data
    others = {str(p.relative_to(ROOT)) for p in files if p.suffix not in (".py", ".pyc")}
    assert others == data, "data of a package: name it in setup.py"


def test_a_wheel_says_what_it_needs(wheel):
    (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    said = email.message_from_bytes(wheel.read(path))
    needs = [line for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert set(map(Requirement, needs)) == set(map(Requirement, wanted))
    extras = {"experiments", "tasks", "gguf", "trackers", "test"}
    assert set(said.get_all("Provides-Extra")) == extras
    assert said.get_payload().startswith("# ")
