"""The launch scripts: what they print and do, against stand-ins for gcloud and the trainer."""

import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
TRAIN = ("--", "--config=a b.py", "--workdir=it's", "--config.seed=1")
POD = ("launch/tpu_pod.sh", "--name=n", "--zone=z")


def bash(*arguments, **options):
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run(["bash", *arguments], check=False, **options)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_shellcheck_has_nothing_to_say():
    beside_python = pathlib.Path(sys.executable).parent
    found = shutil.which("shellcheck", path=f"{beside_python}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("shellcheck is not installed (pip install -e .[test])")
    done = subprocess.run([found, *SCRIPTS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def checkout(tmp_path, pip):
    """What setup.sh needs of a checkout, with `pip` (its __main__) in the place of the real one."""
    (tmp_path / "launch").mkdir()
    shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
    (tmp_path / "requirements.txt").write_text("jax\n")
    (tmp_path / "setup.py").write_text("")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "ensurepip.py").write_text("raise SystemExit('not in this Python')")
    if pip is not None:
        (modules / "pip").mkdir()
        (modules / "pip" / "__main__.py").write_text(pip)
    return tmp_path


def set_up(directory, **variables):
    """How setup.sh ends there, as the scripts without `set -e` source it."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(directory / "modules")}
    environment |= {"PYTHON": sys.executable} | variables
    return bash("-c", "source launch/setup.sh; echo set up", cwd=directory, env=environment)


INSTALLED = "import sys; 'install' in sys.argv and print('pip', *sys.argv[1:])"


def test_a_venv_without_pip_is_explained_and_repaired_by_the_next_try(tmp_path):
    done = set_up(checkout(tmp_path, pip=None))
    assert done.returncode == 2
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"apt install python{version}-venv" in done.stderr
    assert done.stderr.count("\n") == 1
    (tmp_path / "modules" / "pip").mkdir()
    (tmp_path / "modules" / "pip" / "__main__.py").write_text(INSTALLED)
    done = set_up(tmp_path, EXTRAS="[test]")
    assert done.returncode == 0, done.stderr
    assert "--editable .[test]" in done.stdout
    assert "pip" not in set_up(tmp_path, EXTRAS="[test]", PYTHON="").stdout, "once"
    (tmp_path / "requirements.txt").write_text("jax\nflax\n")
    assert "pip install" in set_up(tmp_path, EXTRAS="[test]").stdout


def test_another_python_than_that_of_the_venv_is_refused(tmp_path):
    assert set_up(checkout(tmp_path, INSTALLED)).returncode == 0
    other = "3.13" if sys.version_info[:2] != (3, 13) else "3.12"
    done = set_up(tmp_path, PYTHON=str(program(tmp_path / "other", f"echo {other}")))
    assert done.returncode == 2
    assert f"is {other}: remove .venv to make it anew" in done.stderr
    done = set_up(tmp_path, PYTHON=str(program(tmp_path / "old", "echo 3.10; exit 1")))
    assert done.returncode == 2
    assert "is 3.10: remix_jax needs Python 3.11 to 3.13" in done.stderr
    done = set_up(tmp_path, PYTHON="python-nowhere")
    assert "python-nowhere is not there" in done.stderr


def test_an_installation_that_fails_is_tried_again(tmp_path):
    failing = "import sys; sys.exit('install' in sys.argv)"
    assert set_up(checkout(tmp_path, failing)).returncode == 1
    done = set_up(tmp_path)
    assert (done.returncode, "set up" in done.stdout.splitlines()) == (1, False)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*POD, "--type=v6e-16", "--spot", "--dry_run", *TRAIN), [
            "tpu-vm create n --zone=z --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot",
            "git archive", "tpu-vm scp", "jax[tpu]", "experiments.train --distributed",
            "--worker=0",
        ]),
        ((*POD, "--stop", "--dry_run"), ["kill -TERM"]),
        ((*POD, "--delete", "--dry_run"), ["tpu-vm delete n --zone=z --quiet"]),
        (("launch/gpu.sh", "--dry_run", *TRAIN), [
            "launch/setup.sh", "jax[cuda]", "again.sh .venv/bin/python -m experiments.train",
        ]),
        (("launch/gpu.sh", "--slurm", "--nodes=2", "--gpus=4", "--dry_run", *TRAIN), [
            "sbatch", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "srun", "requeue",
        ]),
        (("launch/smollm2.sh", "--dry_run", "--gguf=F", "--workers=3", "--", "--rollouts=9"), [
            "smollm2.prepare", "--gguf=F", "smollm2.examples", "experiments.sft",
            "experiments.compare", "--workers=3", "--rollouts=9", "smollm2.survey",
        ]),
    ],
)  # fmt: skip
def test_a_dry_run_prints_every_command_and_runs_none(arguments, expected):
    done = bash(*arguments, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    said = "\n".join(commands).replace("\\", "")
    position = 0
    for part in expected:
        assert part in said[position:], f"{part} missing or too early in:\n{said}"
        position = said.index(part, position)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*POD, "--dry_run", *TRAIN), "--type is required"),
        ((*POD, "--type=v9-8", "--dry_run", *TRAIN), "--version=IMAGE"),
        (("launch/tpu_pod.sh", "--stop"), "--name and --zone"),
        ((*POD, "--type=v6e-8", "--dry_run"), "nothing to train"),
        (("launch/gpu.sh", "--nodes=x", *TRAIN), "are counts"),
        (("launch/gpu.sh", "--what"), "unknown option --what"),
        (("launch/smollm2.sh", "--workers=0"), "are counts"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    done = bash(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_again_continues_after_75_and_hands_on_other_codes(tmp_path):
    count = tmp_path / "count"
    body = f'echo "$*" >> {count}; [ $(wc -l < {count}) -gt 2 ] && exit 3; exit 75'
    trainer = program(tmp_path / "trainer", body)
    done = bash("launch/again.sh", trainer, "a b", "c")
    assert done.returncode == 3
    assert count.read_text() == "a b c\n" * 3


def test_again_passes_sigterm_on_and_ends(tmp_path):
    body = "trap 'echo got it; exit 75' TERM; echo up; while :; do sleep 0.05; done"
    trainer = program(tmp_path / "trainer", body)
    running = subprocess.Popen(
        ["bash", "launch/again.sh", trainer], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "up\n"
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=20)
    assert (out, running.returncode) == ("got it\n", 75)


GCLOUD = """
echo "$*" | head -n 1 >> "$LOG"
for word in "$@"; do
  case "$word" in --command=*) command="${word#*=}" ;; esac
done
case "$*" in
  *describe*) cat "$STATE" 2> /dev/null ;;
  *" create "*) echo READY > "$STATE" ;;
  *run.pid*) cd "$POD" && bash -c "$command" ;;
esac
"""
TRAINER = """
echo "trained with: $*"
count=$(cat ../count 2> /dev/null || echo 0)
echo $((count + 1)) > ../count
[ "$count" -gt 0 ] && exit 4
exit 75
"""


def stand_ins(tmp_path, trainer):
    """A pod of one worker that is a folder here, and the environment in which it is found."""
    pod, tools = tmp_path / "pod", tmp_path / "bin"
    (pod / "remix" / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "again.sh", pod / "remix" / "launch")
    program(pod / "remix" / ".venv" / "bin" / "python", trainer)
    program(tools / "gcloud", GCLOUD)
    program(tools / "git", ': > "${3#--output=}"')  # the archive, empty
    places = {"LOG": tmp_path / "log", "STATE": tmp_path / "state", "POD": pod}
    return {name: str(path) for name, path in places.items()} | {"PATH": f"{tools}:/usr/bin:/bin"}


def test_a_pod_is_made_started_again_and_followed(tmp_path):
    """Its trainer ends with 75 once, then with 4, which is the script's code too."""
    environment = stand_ins(tmp_path, TRAINER)
    done = bash(*POD, "--type=v6e-8", *TRAIN, env=environment)
    arguments = "-m experiments.train --distributed --config=a b.py --workdir=it's --config.seed=1"
    assert done.stdout.count(f"trained with: {arguments}") == 2, done.stdout + done.stderr
    assert done.returncode == 4
    assert "still there and costs money" in done.stdout
    actions = [line.split()[3] for line in (tmp_path / "log").read_text().splitlines()]
    assert actions == ["describe", "create", "scp", "ssh", "ssh", "ssh", "ssh", "describe"]


def test_stopping_a_pod_lets_the_trainer_save(tmp_path):
    saving = "trap 'sleep 0.3; echo saved; exit 75' TERM; echo up; while :; do sleep 0.05; done"
    environment = stand_ins(tmp_path, saving)
    running = subprocess.Popen(
        ["bash", *POD, "--type=v6e-8", *TRAIN],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "pod" / "remix" / "run.log"
    begin = time.monotonic()
    while not (log.exists() and "up" in log.read_text()):
        assert time.monotonic() - begin < 30
        time.sleep(0.05)
    assert bash(*POD, "--stop", env=environment).returncode == 0
    running.communicate(timeout=30)
    assert running.returncode == 75
    assert "saved" in log.read_text()
