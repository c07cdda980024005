import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from math_grader.pool import GraderPool, WorkerPool

ROGUE = "tests.grading.rogue_worker:comparison"
SANE = [(str(i), str(i - i % 3)) for i in range(60)]


@pytest.fixture
def pool():
    with GraderPool(workers=2, seconds=0.3, factory=ROGUE) as pool:
        yield pool


def children():
    """The children of this process that /proc shows, zombies included."""
    found = set()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def gone(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True  # nobody's child in a container without an init
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("evil", ["hang", "sleep", "crash", "grow"])
def test_a_bad_item_is_a_timeout_and_takes_no_other_with_it(pool, evil):
    pairs = [*SANE[:20], (evil, "1"), *SANE[20:40], (evil, "2"), *SANE[40:]]
    verdicts = pool.compare(pairs)
    expected = [None if a == evil else a == g for a, g in pairs]
    assert verdicts == expected
    assert pool.compare(SANE) == [a == g for a, g in SANE]


def test_errors_and_prints_are_no_replies(pool):
    assert pool.compare([("raise", "raise"), ("noise", "1"), ("x", "x")]) == [False, False, True]


def test_equal_pairs_are_asked_once_and_timeouts_are_remembered(pool):
    assert pool.compare([("hang", "1")] * 50) == [None] * 50
    begin = time.monotonic()
    assert pool.compare([("hang", "1"), ("hang", "1")]) == [None, None]
    assert time.monotonic() - begin < 0.1


def test_a_worker_killed_from_outside_loses_nothing(pool):
    pool.compare(SANE[:4])
    pairs = [(f"slow{i}", f"slow{i - i % 2}") for i in range(6)]
    killer = threading.Timer(0.2, lambda: os.kill(pool.pids[0], signal.SIGKILL))
    killer.start()
    assert pool.compare(pairs) == [a == g for a, g in pairs]
    killer.join()


def test_idle_workers_killed_from_outside_are_replaced(pool):
    assert pool.compare([("a", "a"), ("b", "a")]) == [True, False]
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert pool.compare(SANE) == [a == g for a, g in SANE]


def test_a_second_attempt_is_no_dying_worker_s(pool):
    assert pool.compare([("doom1", "doom1"), ("doom2", "doom2")]) == [True, True]
    assert len(pool.pids) == 2  # both idle, both to die of what they are asked next
    assert pool.compare([("a", "a")]) == [True]


def test_close_leaves_no_process_and_no_zombie():
    before = children()
    with GraderPool(workers=2, seconds=0.2, factory=ROGUE) as pool:
        assert children() == before  # nothing starts before it is needed
        pool.compare([("hang", "1"), ("crash", "1")])
        pool.compare(SANE)
        assert len(children() - before) == len(pool.pids) > 0
    assert children() == before
    assert pool.compare([("a", "a")]) == [True]  # a closed pool starts anew
    pool.close()
    assert children() == before


@pytest.mark.parametrize("answer", ["a", "hang"])
def test_workers_end_with_a_killed_parent(answer):
    code = (
        "import sys, threading, time\n"
        "from math_grader.pool import GraderPool\n"
        f"pool = GraderPool(workers=1, seconds=0.5, factory={ROGUE!r})\n"
        "pool.compare([('a', 'a')])\n"
        f"threading.Thread(target=pool.compare, args=([({answer!r}, 'b')],), daemon=True).start()\n"
        "time.sleep(0.1)\n"
        "print(*pool.pids, flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert pids
    assert all(gone(pid) for pid in pids)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also in a process that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_is_for_the_parent_and_leaves_no_stale_reply(pool):
    pool.compare([("a", "a")])
    pids = pool.pids
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert pool.compare([("b", "b")]) == [True]
    assert pool.pids == pids
    threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        pool.compare([(f"slow{i}", f"slow{i}") for i in range(40)])  # seconds, if not interrupted
    assert pool.pids == []
    assert pool.compare([("c", "d"), ("e", "e")]) == [False, True]


def test_a_forked_process_starts_its_own_workers(pool):
    assert pool.compare([("a", "a")]) == [True]
    child = os.fork()
    if child == 0:
        ok = pool.compare([("b", "b"), ("c", "b")]) == [True, False]
        pool.close()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.compare([("d", "d")]) == [True]


def running(command):
    """Whether a process with this command line lives."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == command:
                return True
        except OSError:
            continue
    return False


def test_what_a_worker_started_ends_with_it(pool):
    assert pool.compare([("child", "1")]) == [None]
    assert not running(b"sleep\x001000\x00")


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("no.such.module:f", "No module named 'no'"),
        ("tests.grading.rogue_worker:broken", "ValueError: no such thing"),
    ],
)
def test_workers_that_do_not_start_are_an_error(factory, said):
    with WorkerPool(factory, workers=2) as pool:
        with pytest.raises(RuntimeError, match=f"{factory} do not start: .*{said}"):
            pool.map([("a", "a")])
        with pytest.raises(RuntimeError, match=said):
            pool.start()


def test_replies_say_what_happened():
    with WorkerPool(ROGUE, workers=1, seconds=0.3) as pool:
        pool.start()
        assert len(pool.pids) == 1
        replies = pool.map([(c, "a") for c in ("a", "hang", "crash", "grow", "raise")])
        assert [r.failure for r in replies] == [None, "timeout", "died", "memory", "error"]
        assert replies[0].value is True
        assert "rogue_worker.py" in replies[-1].line
        assert replies[-1].line.endswith("ValueError")
        big = "x" * 1_000_000  # more than a pipe holds, in one line
        assert pool.map([(big, big)])[0].value is True


def test_workers_import_no_jax():
    code = (
        "import sys; from math_grader import equivalence;"
        "sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
