"""FLOPs of a step: every pass that a switch adds is counted."""

import pytest

from remix_jax.config import stages
from remix_jax.models import flops
from remix_jax.run.cost import step_flops
from tests.learner.tiny import POLICY, P, T, grouped, make_config, start


def spent(config, kl_weight=1.0):
    learner, _ = start(config)
    return step_flops(learner, config, stages(config)["mix"], 0, kl_weight)


def of_rows(rows, head="token", count=flops.scored):
    return count(POLICY.config, rows, P, T, head)


def test_switches_cost_what_they_run():
    plain = spent(make_config())
    critic = of_rows(8, "value") + of_rows(16, "value", flops.trained)
    assert plain - spent(make_config(objective__advantage="mean_baseline", group_size=1)) == (
        pytest.approx(critic)
    )
    imitating = spent(make_config(imitation__weight=1.0))
    assert imitating - plain == pytest.approx(of_rows(16, count=flops.trained))
    assert spent(make_config(), kl_weight=0.9) - plain == pytest.approx(of_rows(8))
    passes = spent(make_config(passes=3)) - plain
    heads = of_rows(8, count=flops.trained) + of_rows(8, "value", flops.trained)
    assert passes == pytest.approx(heads)
    assert spent(grouped()) < plain
