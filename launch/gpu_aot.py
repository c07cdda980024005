"""What a run would need and do on NVIDIA cards, by XLA's GPU compiler: no GPU is asked for.

    python -m launch.gpu_aot --config=experiments/configs/gsm8k_0p5b.py --cards=rtx4090,h100
    python -m launch.gpu_aot --config=experiments/configs/remix_ppo_1p5b.py --cards=h100 --gpus=8

Needs the compiler beside the other requirements, in an environment of its own (launch/README.md),
and some minutes a card. docs/scaling.md explains the columns.
"""

import os

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # compiling asks for no driver

import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments import main
from launch import aot, cards
from remix_jax import cost, sharding
from remix_jax.errors import InputError

CARDS = flags.DEFINE_list("cards", ["h100"], "cards to compile for")
GPUS = flags.DEFINE_integer("gpus", 1, "how many of a card one machine has", lower_bound=1)


def target(name: str, gpus: int, wanted: tuple[int, int, int]) -> aot.Target:
    """`gpus` cards of one machine.

    Raises:
      InputError: there is no such card, no GPU compiler, or the mesh does not suit it.
    """
    if name not in cards.KNOWN:
        raise InputError(f"--cards={name}: must be of {', '.join(cards.KNOWN)}")
    # Autotuning would measure kernels on the card.
    options = {"xla_gpu_autotune_level": "0", "xla_gpu_cuda_data_dir": str(cards.toolkit())}
    card = cards.KNOWN[name]
    chip = cost.chip(card.kind)
    assert chip is not None
    given = {"topology": f"1x1x{gpus}", "target_config": cards.description(card, chip)}
    found = topologies.get_topology_desc(platform="cuda", topology_name=name, **given)
    shape = sharding.mesh_shape(wanted, gpus)
    mesh = Mesh(np.array(found.devices).reshape(shape), sharding.AXES)
    room = cards.SHARE * card.memory_gib * 2**30
    title = f"{gpus} x {card.kind}"
    return aot.Target(title, mesh, chip, room, "gpu", options)


def compile_ahead() -> None:
    """The command behind the flags."""
    config, parts, dump = aot.checked()
    for there in [target(name, GPUS.value, config.mesh.sizes) for name in CARDS.value]:
        aot.report(config, there, parts, dump)


if __name__ == "__main__":
    main.run(compile_ahead, required=["config"])
