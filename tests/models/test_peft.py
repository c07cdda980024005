"""Adapter directories: torch `peft` reads ours, we read peft's; what does not fit is one line."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from remix_jax.errors import InputError
from remix_jax.models import huggingface, lora, peft
from remix_jax.models.decoder import Decoder
from remix_jax.models.lora import Lora
from tests.models.test_huggingface import logits_of, ragged_rows, torch_directory
from tests.models.test_lora import adapted
from tests.tiny_models import edit_json

ADAPTERS = Lora(rank=2, alpha=8.0, targets="layers_1|/(q|down)$")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return torch_directory("Qwen2", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def ours(base):
    """A model with adapters of visible size on the weights of `base`."""
    model, params = huggingface.load(base)
    _, whole = adapted(params, ADAPTERS)
    model = Decoder(dataclasses.replace(model.config, lora=ADAPTERS))
    return model, whole


@pytest.fixture
def saved(base, ours, tmp_path):
    model, whole = ours
    peft.save(model.config.lora, lora.split(whole)[1], tmp_path / "adapter", base)
    return tmp_path / "adapter"


def peft_logits(base, adapter, tokens_BS, mask_BS):
    torch, torch_peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model = torch_peft.PeftModel.from_pretrained(model, adapter).eval()
    tokens, mask = torch.tensor(tokens_BS), torch.tensor(mask_BS)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    return out.logits.float().numpy()


def test_torch_peft_loads_ours_with_the_same_logits(base, ours, saved, recwarn):
    model, whole = ours
    rows = ragged_rows(model.config.vocab_size)
    found = peft_logits(base, saved, *rows)
    real = rows[1] > 0
    np.testing.assert_allclose(found[real], logits_of(model, whole, *rows)[real], atol=2e-5)
    plain, params = huggingface.load(base)
    assert abs(found[real] - logits_of(plain, params, *rows)[real]).max() > 0.05
    assert not [w for w in recwarn if "adapter" in str(w.message) or "keys" in str(w.message)]
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o644}
    again = peft.load(model, saved, base)
    jax.tree.map(np.testing.assert_array_equal, again, lora.split(whole)[1])


def test_an_adapter_that_peft_made_is_read(base, tmp_path):
    torch, torch_peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    settings = torch_peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    theirs = torch_peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    theirs.save_pretrained(tmp_path / "theirs")
    plain, params = huggingface.load(base)
    model = Decoder(dataclasses.replace(plain.config, lora=peft.read_lora(tmp_path / "theirs")))
    whole = lora.joined(params, peft.load(model, tmp_path / "theirs", base))
    rows = ragged_rows(plain.config.vocab_size)
    expected = peft_logits(base, tmp_path / "theirs", *rows)
    real = rows[1] > 0
    np.testing.assert_allclose(logits_of(model, whole, *rows)[real], expected[real], atol=2e-5)
    merged = lora.merged(model.config.lora, whole)
    np.testing.assert_allclose(logits_of(plain, merged, *rows)[real], expected[real], atol=2e-5)


def with_config(**changes):
    return lambda folder: edit_json(folder / peft.CONFIG, **changes)


def retensored(change):
    def apply(folder):
        tensors = safetensors.numpy.load_file(folder / peft.WEIGHTS)
        change(tensors, min(tensors))
        safetensors.numpy.save_file(tensors, folder / peft.WEIGHTS)

    return apply


FAULTS = {
    "another rank": (with_config(r=4), "lora.rank = 2: the adapter in .* has 4; set --config.lo"),
    "another alpha": (with_config(lora_alpha=1), "config.lora.alpha = 8: the adapter in .* has 1"),
    "dora": (with_config(use_dora=True), "use_dora is True; only False is supported"),
    "head": (with_config(modules_to_save=["lm_head"]), "modules_to_save is .* only None"),
    "another kind": (with_config(peft_type="IA3"), "peft_type is 'IA3'; only LORA"),
    "no rank": (with_config(r="two"), "r = 'two', .*must be above 0"),
    "other weights": (
        lambda folder: edit_json(folder / "remix.json", base_weights_digest="0" * 16),
        "trained on other weights .0000000000000000. than those in .*config.model.path must name",
    ),
    "a module of ours without": (retensored(lambda t, n: t.pop(n)), "has no adapter, and this run"),
    "one more": (
        retensored(lambda t, n: t.update({n.replace("down_proj", "z_proj"): t[n]})),
        "z_proj has an adapter, and this run's model none there",
    ),
    "another shape": (
        retensored(lambda t, n: t.update({n: np.zeros((2, 7), np.float32)})),
        r"has shape \(2, 7\), the model in .* asks for .2, 24.: these are adapters of another",
    ),
    "not finite": (
        retensored(lambda t, n: t.update({n: np.full_like(t[n], np.nan)})),
        "holds NaN or infinity",
    ),
    "damaged": (
        lambda folder: (folder / peft.WEIGHTS).write_bytes(b"no"),
        "missing or damaged weights",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_one_line(fault, base, ours, saved):
    break_, words = FAULTS[fault]
    break_(saved)
    with pytest.raises(InputError, match=words) as raised:
        peft.load(ours[0], saved, base)
    assert "\n" not in str(raised.value)


def test_nothing_else_is_written_over(base, ours, saved):
    model, whole = ours
    before = (saved / peft.WEIGHTS).read_bytes()
    peft.save(model.config.lora, lora.split(whole)[1], saved, base)
    assert (saved / peft.WEIGHTS).read_bytes() == before
    (saved / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"holds README.md, which would be lost"):
        peft.save(model.config.lora, lora.split(whole)[1], saved, base)
