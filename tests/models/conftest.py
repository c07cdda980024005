"""A model directory that the tests of this folder share."""

import pytest

from remix_jax.models import huggingface
from tests import tiny_models


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A saved tiny Qwen2 with a tokenizer; never written to by the tests."""
    folder = tmp_path_factory.mktemp("exported")
    source = tiny_models.write_tokenizer(folder / "tokenizer")
    model, params = tiny_models.random_decoder(tiny_models.decoder_config())
    huggingface.save(model, params, folder / "model")
    for file in source.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    return folder / "model"


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of `exported` for a test to damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
