"""Optimizers against torch's, Hugging Face's and the papers' equations; what their states are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.optimization import Adafactor

from launch.dry_run import planned_mesh
from remix_jax import sharding
from remix_jax.learner.state import abstract_state, make_learner
from remix_jax.rl import optimizers
from tests.learner.tiny import POLICY, make_config

RATE, DECAY, CLIP, STEPS = 1e-2, 0.1, 200.0, 4
SHAPES = {("layers_0", "q", "kernel"): (130, 140), ("embed", "embedding"): (9, 5)}


def draws(step):
    """Parameters (step 0) or gradients, larger with each step: the first is within the bound."""
    rng, size = np.random.default_rng(step), max(step, 1)
    return {path: (size * rng.normal(size=n)).astype(np.float32) for path, n in SHAPES.items()}


def tree(arrays):
    return {path[0]: {path[1]: {path[2]: x}} if path[2:] else {path[1]: x}
            for path, x in arrays.items()}  # fmt: skip


def norm_of(arrays):
    return np.sqrt(sum(np.square(x).sum() for x in arrays.values()))


def ours(name, steps=STEPS, decay=DECAY, clip=CLIP):
    """The parameters after some steps of ours."""
    optimizer = optimizers.make(name, None, None, decay, "", clip)
    params = jax.tree.map(jnp.asarray, tree(draws(0)))
    state = optimizer.init(params)
    for step in range(1, steps + 1):
        grads, norm = draws(step), norm_of(draws(step))
        given = {"norm": norm, "learning_rate": RATE}
        moved, state = optimizer.update(tree(grads), state, params, **given)
        params = jax.tree.map(jnp.add, params, moved)
    return params


def theirs(make, paths=tuple(SHAPES), steps=STEPS):
    """The same by an optimizer of torch's form; of `paths` alone, the norm being of all."""
    begin = draws(0)
    params = [torch.nn.Parameter(torch.tensor(begin[path])) for path in paths]
    optimizer = make(params)
    for step in range(1, steps + 1):
        grads = draws(step)
        scale = min(1.0, CLIP / norm_of(grads))
        for param, path in zip(params, paths, strict=True):
            param.grad = torch.tensor(grads[path] * np.float32(scale))
        optimizer.step()
    return [param.detach().numpy() for param in params]


def adamw(params):
    return torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY)


def adafactor(params):
    """What the trainer of Hugging Face makes of optim="adafactor", with the same eps as optax."""
    return Adafactor(params, lr=RATE, scale_parameter=False, relative_step=False, eps=(1e-30, 1e-3),
                     warmup_init=False, weight_decay=DECAY)  # fmt: skip


def test_adamw_is_torchs():
    expected = theirs(adamw)
    for x, y in zip(jax.tree.leaves(ours("adamw")), reversed(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_adafactor_is_hugging_faces():
    """Of the matrix that is large enough for optax to keep sums of its rows and columns alone."""
    (expected,) = theirs(adafactor, paths=list(SHAPES)[:1])
    actual = ours("adafactor")["layers_0"]["q"]["kernel"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_lion_is_its_algorithm():
    """arXiv 2302.06675, algorithm 2, in NumPy."""
    params, moment = draws(0), {path: np.zeros(shape) for path, shape in SHAPES.items()}
    for step in range(1, STEPS + 1):
        grads = draws(step)
        scale = min(1.0, CLIP / norm_of(grads))
        for path, grad in grads.items():
            sign = np.sign(0.9 * moment[path] + 0.1 * scale * grad)
            moment[path] = 0.99 * moment[path] + 0.01 * scale * grad
            params[path] = params[path] - RATE * (sign + DECAY * params[path])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
                 ours("lion"), tree(params))  # fmt: skip


def test_muon_is_torchs_on_matrices_of_layers_and_adamw_on_others():
    """Its first step: from the second on torch's momentum has no correction of its bias."""

    def muon(params):
        return torch.optim.Muon(params, lr=RATE, weight_decay=DECAY, momentum=0.95,
                                adjust_lr_fn="match_rms_adamw")  # fmt: skip

    found = ours("muon", steps=1)
    (matrix,) = theirs(muon, paths=list(SHAPES)[:1], steps=1)
    decayed = draws(0)["layers_0", "q", "kernel"] * (1 - RATE * DECAY)
    step, actual = matrix - decayed, found["layers_0"]["q"]["kernel"] - decayed
    assert np.abs(actual - step).max() < 0.03 * np.abs(step).max(), "torch's is in bfloat16"
    assert np.sqrt(np.square(actual).mean()) == pytest.approx(0.2 * RATE, rel=0.15)
    sign = np.sign(draws(1)["embed", "embedding"])  # of Adam, once; then Nesterov's momentum
    embedding = draws(0)["embed", "embedding"] * (1 - RATE * DECAY) - RATE * sign * (0.9 / 1.9 + 1)
    np.testing.assert_allclose(found["embed"]["embedding"], embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", optimizers.RULES)
def test_every_array_of_a_state_has_a_place_and_its_size(name, adapted):
    """With layers scanned: Muon's matrices are each by itself, its moments one a parameter."""
    changes = {"lora__rank": 2, "lora__critic": "full"} if adapted else {}
    config = make_config(optimizer__name=name, memory__scan_layers=True, **changes)
    config.critic.optimizer.name = name
    state = abstract_state(make_learner(config, POLICY))
    mesh = planned_mesh((1, 2, 2))
    for params, held in ((state.params, state.opt_state),
                         (state.critic_params, state.critic_opt_state)):  # fmt: skip
        sharding.shardings(held, mesh)
        size, on_device = sharding.tree_bytes(held), sharding.tree_bytes(held, mesh)
        least, most = {"adamw": (2, 2), "lion": (1, 1), "muon": (1, 1.9), "adafactor": (0, 1.1)}[
            name
        ]
        numbers = sharding.tree_bytes(params)
        assert least * numbers <= size <= most * numbers + 1024
        assert on_device <= size
    assert sharding.tree_bytes(state.opt_state, mesh) < sharding.tree_bytes(state.opt_state)


def test_sums_of_adafactor_are_whole_on_every_device():
    params = {"layers": {"q": {"kernel": jnp.zeros((4, 130, 140))}}}
    state = optimizers.make("adafactor", None, None, 0.0, "", 1.0).init(params)
    mesh = planned_mesh((1, 2, 2))
    where = jax.tree_util.tree_leaves_with_path(sharding.shardings(state, mesh))
    specs = {sharding.path_text(path): x.spec for path, x in where}
    kept = {name: spec for name, spec in specs.items() if name.endswith("q/kernel")}
    assert len(kept) == 3
    assert not any(any(spec) for spec in kept.values())
    assert sharding.tree_bytes(state) == 4 * (4 * (130 + 140) + 1) + 4, "and a counter"
