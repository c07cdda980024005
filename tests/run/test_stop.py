"""How a run is asked to end: by signals, on one process or on several."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remix_jax.run import stop
from remix_jax.run.stop import Preempted, watch


def test_signals_are_told_and_given_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    told = []
    with watch(told.append) as asked:
        assert not asked.agreed
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.agreed == {signal.SIGTERM}
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.agreed == {signal.SIGTERM, signal.SIGINT}
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert told == [
        "SIGTERM: saving and ending",
        "stopping after this step (Ctrl-C again stops at once)",
    ]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_ends_the_waiting_and_ctrl_c_does_not():
    double = jax.jit(lambda x: 2 * x)
    with watch(lambda _: None) as asked:
        call = asked.watched(double)
        assert call(jnp.ones(3)).tolist() == [2, 2, 2]
        os.kill(os.getpid(), signal.SIGINT)
        assert call(jnp.ones(3)).tolist() == [2, 2, 2]
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted):
            call(jnp.ones(3))


def test_several_processes_end_after_the_same_step(monkeypatch):
    """The other process is told, or this one is: it counts when both have said what they know."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    other = np.zeros(2, bool)
    gather = lambda own: np.stack([own, other])  # noqa: E731
    monkeypatch.setattr(stop.multihost_utils, "process_allgather", gather)
    with watch(lambda _: None) as asked:
        asked.agree()
        assert not asked.agreed
        os.kill(os.getpid(), signal.SIGTERM)
        assert not asked.agreed, "only here: the other would go on"
        assert asked.watched(lambda: jnp.ones(2))().tolist() == [1, 1], "programs are collective"
        asked.agree()
        assert asked.agreed == {signal.SIGTERM}
    with watch(lambda _: None) as asked:
        other[0] = True
        asked.agree()
        assert asked.agreed == {signal.SIGINT}
