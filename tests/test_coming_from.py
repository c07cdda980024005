"""The page for users of TRL and verl names fields that there are."""

import importlib.util
import re

from remix_jax import config as configs
from remix_jax import config_rules
from remix_jax.config import OWN_ADVANTAGE
from remix_jax.rl import advantages, family, masked
from tests.doc_pages import ROOT, write_named

PAGE = "docs/coming_from.md"


def ours():
    """The third column of the table."""
    rows = [line.split("|") for line in (ROOT / PAGE).read_text().splitlines() if line[:1] == "|"]
    return [row[3] for row in rows[2:]]


def test_every_field_of_the_table_is_a_field():
    names = [name for cell in ours() for name in re.findall(r"`([a-z_.]+)(?:=\w[\w-]*)?`", cell)]
    names.remove("gspo")
    assert len(names) > 30
    for name in names:
        configs.field_type(name)


def test_every_value_of_the_table_is_one():
    known = {
        "objective.aggregation": masked.AGGREGATIONS,
        "objective.method": family.METHODS,
        "objective.advantage": {*advantages.ESTIMATORS, "gae", "vtrace", OWN_ADVANTAGE},
    }
    given = re.findall(r"`([a-z_.]+)=([\w-]+)`", " ".join(ours()))
    assert {name for name, _ in given} == set(known)
    for name, value in given:
        assert value in known[name], (name, value)


def test_the_config_of_the_page_is_valid(tmp_path):
    (name,) = write_named(PAGE, tmp_path)
    specification = importlib.util.spec_from_file_location("as_trl", tmp_path / name)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    config = module.get_config()
    config_rules.validate(config)
    assert (config.replay.share, config.passes, config.kl.convex) == (0, 1, False)
    assert (config.objective.clip_high, config.kl.weighted) == (0.28, True)
