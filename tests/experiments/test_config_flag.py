"""--config and its overrides: what they take, and what is said of wrong ones."""

import subprocess
import sys

import pytest

from experiments import config_flag
from remix_jax.errors import InputError
from tests.doc_pages import ROOT

PRESET = f"--config={ROOT}/experiments/configs/arithmetic_remix_ppo.py"
# One process for all: flags are global. It prints a line for each set of arguments.
PROGRAM = f"""
import sys
from absl import flags
from experiments import config_flag
flag = config_flag.define()
for arguments in (
    ["--config.data.suites=a.json,b.json", "--config.steps=1e3", "--noconfig.objective.whiten"],
    ["--config.objective.method_params=low=3e-4,high=4e-4"],
    ["--config.data.suites=('c d.json',)", "--config.reward.weights=1,2.5"],
    ["--config.data.suites=e.json", "--config.data.suites=f.json"],
    ["--config.steps=1.5"],
    ["--learning_rate=1"],
):
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.argv = ["x", {PRESET!r}, *arguments]
    try:
        flags.FLAGS(sys.argv)
        c = config_flag.value_of(flag)
        o = c.objective
        print(c.data.suites, c.steps, o.whiten, c.reward.weights, o.method_params)
    except flags.UnrecognizedFlagError as error:
        print(config_flag.unknown_flag(error))
    except flags.Error as error:
        print(error)
"""


def test_values_of_overrides():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lists, named, quoted, repeated, half, unknown = done.stdout.splitlines() or [done.stderr]
    assert lists == "('a.json', 'b.json') 1000 False () ()"
    assert named.endswith("('low=3e-4', 'high=4e-4')")
    assert quoted.startswith("('c d.json',)")
    assert quoted.endswith("(1.0, 2.5) ()")
    assert repeated.startswith("('e.json', 'f.json')")
    assert half.endswith("must be a whole number")
    assert "did you mean --config.optimizer.learning_rate or --config.critic." in unknown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([PRESET[:-4] + ".py"], "no such file; did you mean"),
        ([PRESET, "--config.optimizer.lr=1"], "--config.optimizer.lr: Optimizer has no field lr"),
        ([PRESET, "--config.reply.share=1"], "Config has no field reply; did you mean replay?"),
        (
            [PRESET, "--config.steps.share=1"],
            "config.steps.share: steps has no fields",
        ),
    ],
)
def test_files_and_fields_that_do_not_exist(arguments, said):
    with pytest.raises(InputError) as error:
        config_flag.check(arguments)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import nothing_of_this_name", "wrong.py:1: ModuleNotFoundError: No module named"),
        ("def get_config(: pass", "wrong.py:1: SyntaxError"),
        ("def get_config():\n    return {}['x']", "wrong.py:2: KeyError: 'x'"),
        ("x = 1", "has no get_config"),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(line, said, tmp_path):
    (tmp_path / "wrong.py").write_text(line + "\n")
    with pytest.raises(InputError) as error:
        config_flag.check([f"--config={tmp_path}/wrong.py"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_no_flags_at_all_are_no_error_of_the_config():
    config_flag.check([])
