"""One revision of a model's repository, for everything that is read of it."""

import importlib
import json
import sys

import pytest

from trainers.recipes import RecipeError


@pytest.fixture
def asked(monkeypatch):
    """Class -> the revisions that its `from_pretrained` was asked for, in the process of the test."""
    import transformers

    found = {}
    for name in ("AutoConfig", "AutoProcessor", "AutoModel", "AutoImageProcessor"):
        cls = getattr(transformers, name)
        original = cls.from_pretrained.__func__

        def record(cls, *args, original=original, name=name, **kwargs):
            found.setdefault(name, set()).add(kwargs.get("revision"))
            return original(cls, *args, **kwargs)

        monkeypatch.setattr(cls, "from_pretrained", classmethod(record))
    return found


def validate(method: str, tmp_path, monkeypatch, **keys) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer"])
    recipe = tmp_path / "recipe.yaml"
    common = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "bf16": False, "validate_only": True}
    recipe.write_text(json.dumps(common | keys), encoding="utf-8")
    importlib.import_module(f"trainers.{method}").main(["--config", str(recipe)])


@pytest.mark.parametrize("keys", [{"model_revision": "v2"}, {"model_init_kwargs": {"revision": "v2"}},
                                  {"model_revision": "v2", "model_init_kwargs": {"revision": "v2"}}])  # fmt: skip
@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_p12_one_revision_for_config_and_processor(asked, tmp_path, monkeypatch, tiny_model, method, keys):
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": [{"role": "user", "content": "say 1"}], "completion": "1"}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    keys = keys | ({"reward_funcs": ["strict_xml_format"]} if method == "grpo" else {})
    validate(method, tmp_path, monkeypatch, model_name_or_path=str(tiny_model), dataset_name=str(rows), **keys)
    assert asked["AutoConfig"] == asked["AutoProcessor"] == {"v2"}


def test_p12_reward_models(asked, tiny_model, tiny_reward_model):
    from models.reward_model import from_backbone
    from rewards.registry import build_reward

    from_backbone(str(tiny_model), revision="v2")
    assert asked["AutoConfig"] == {"v2"}
    reward = build_reward({"name": "reward_model", "model": str(tiny_reward_model), "revision": "v2", "device": "cpu"})
    assert len(reward(["red"], prompts=["what?"])) == 1
    assert asked["AutoConfig"] == asked["AutoProcessor"] == {"v2"}


def test_p12_factor_predictors(asked, tiny_model):
    from models.factor_predictor import from_backbone

    from_backbone(str(tiny_model), ["blur"], revision="v2")
    assert asked["AutoConfig"] == asked["AutoImageProcessor"] == {"v2"}


def test_p12_two_revisions_are_refused():
    from types import SimpleNamespace

    from trainers.model_at_hand import hub_arguments

    args = SimpleNamespace(model_init_kwargs=json.dumps({"revision": "v1"}), trust_remote_code=True)
    with pytest.raises(RecipeError, match="model_revision: 'v2', but model_init_kwargs has the revision 'v1'"):
        hub_arguments(args, SimpleNamespace(model_revision="v2"))
    found = hub_arguments(args, SimpleNamespace(model_revision="main"))
    assert found == {"revision": "v1", "trust_remote_code": True}
