"""Selectors are stored and read as every model of transformers, and never with weights that do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from selector_variants import FEW_VARIANTS, build, draw, variant_name
from transformers import AutoModel

from models.selectors.load import load_selector


@pytest.mark.parametrize("variant", FEW_VARIANTS, ids=variant_name)
def test_a_stored_selector_is_the_same(variant, tmp_path):
    selector, batch = build(variant, temperature=0.25), draw([5, 3])
    selector.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loaded in (load_selector(tmp_path), AutoModel.from_pretrained(tmp_path).eval()):
        assert type(loaded) is type(selector)
        assert loaded.config.temperature == 0.25
        assert not loaded.training
        assert torch.equal(
            loaded(*batch.inputs, batch.pointers).log_probs, selector(*batch.inputs, batch.pointers).log_probs
        )


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("cand_proj.weight"), r"missing: \['cand_proj.weight'\]"),
        (lambda weights: weights.update(dpp=torch.zeros(2)), r"unexpected: \['dpp'\]"),
        (lambda weights: weights.update({"query_proj.weight": torch.zeros(3, 8)}), "mismatched: .*query_proj.weight"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(tmp_path, change, message):
    build({}).save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_selector(tmp_path)


def test_other_weights_of_another_variant_are_an_error(tmp_path):
    build({"history": "gru"}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "history": "gate"}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"missing: \['query_update_gate.bias', .*unexpected: \['history_cell.bias_hh'"
    ):
        load_selector(tmp_path)


def test_a_configuration_with_an_unknown_field_is_an_error(tmp_path):
    build({}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "coverage": True}), encoding="utf-8")
    with pytest.raises(ValueError, match="coverage: unknown; PointerSelectorConfig has"):
        load_selector(tmp_path)


def test_another_model_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="pointer_selector or gpt2_selector or encoding_selector, found qwen2_vl"):
        load_selector(tiny_model)
