"""One revision of a model's repository, for everything that is read of it."""

import ast
import importlib
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from types import SimpleNamespace

import pytest
from places import ROOT
from trl import ModelConfig

from trainers.setup.recipes import RecipeError


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
    from models.reward.load import from_backbone
    from rewards.registry import build_reward

    from_backbone(str(tiny_model), revision="v2")
    assert asked["AutoConfig"] == {"v2"}
    reward = build_reward({"name": "reward_model", "model": str(tiny_reward_model), "revision": "v2", "device": "cpu"})
    assert len(reward(["red"], prompts=["what?"])) == 1
    assert asked["AutoConfig"] == asked["AutoProcessor"] == {"v2"}


def test_p12_factor_predictors(asked, tiny_model):
    from models.factors.predictor import from_backbone

    from_backbone(str(tiny_model), ["blur"], revision="v2")
    assert asked["AutoConfig"] == asked["AutoImageProcessor"] == {"v2"}


def test_p12_two_revisions_are_refused():
    from trainers.setup.model import hub_arguments

    args = SimpleNamespace(model_init_kwargs=json.dumps({"revision": "v1"}), trust_remote_code=True)
    with pytest.raises(RecipeError, match="model_revision: 'v2', but model_init_kwargs has the revision 'v1'"):
        hub_arguments(args, SimpleNamespace(model_revision="v2"))
    found = hub_arguments(args, SimpleNamespace(model_revision="main"))
    assert found == {"revision": "v1", "trust_remote_code": True}


def test_p12_vllm_has_no_revision(tmp_path):
    from trainers.setup.checks import check_vllm_revision

    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "owner/base", "revision": "v3"}), encoding="utf-8"
    )
    args = SimpleNamespace(use_vllm=True, vllm_mode="colocate", model_init_kwargs=None)
    check_vllm_revision(args, ModelConfig(str(tmp_path.parent), model_revision="v2"))  # a folder has no revisions
    check_vllm_revision(args, ModelConfig("owner/model"))
    for name, revision, shown in ((str(tmp_path), "main", "owner/base --revision v3"),
                                  ("owner/model", "v2", "owner/model --revision v2")):  # fmt: skip
        with pytest.raises(RecipeError, match=f"vllm_mode: colocate starts vLLM on the main branch .*{shown}"):
            check_vllm_revision(args, ModelConfig(name, model_revision=revision))
    args.vllm_mode = "server"
    check_vllm_revision(args, ModelConfig("owner/model", model_revision="v2"))


# -- every call -------------------------------------------------------------------------------------------------------

PACKAGES = ("data", "models", "rewards", "filter_agents", "rollouts", "trainers")
OF_LIBRARIES = (
    *("from_pretrained", "cached_file", "find_adapter_config_file", "create_model_from_path", "SentenceTransformer"),
    *("hf_hub_download", "snapshot_download", "try_to_load_from_cache"),
)
COMMAND = "a command's folder or Hub id, beside which no revision can be said"
TABLE = "encoders of tables are named to commands, beside which no revision can be said; told by content"
WITHOUT_REVISION = {
    ("data/factor_labels/text_encoder.py", "SentenceTransformer"): COMMAND,
    ("models/embeddings.py", "SentenceTransformer"): TABLE,
    ("models/embeddings.py", "from_pretrained"): TABLE,
    ("models/embeddings.py", "is_sentence_transformers"): TABLE,
    ("models/embeddings.py", "load_vision"): TABLE,
    ("models/selectors/load.py", "from_pretrained"): COMMAND,
    ("models/served/vlm.py", "load_processor"): "the folder that a server of this machine loaded",
    ("models/vlm_places.py", "from_name"): COMMAND,
    ("models/vlm_places.py", "load_processor"): COMMAND,
    ("rollouts/compare_factors.py", "load_factor_predictor"): COMMAND,
    ("rollouts/compare_factors.py", "load_vlm"): COMMAND,
    ("rewards/scoring/model_scores.py", "load_processor"): COMMAND,
    ("rewards/scoring/model_scores.py", "load_reward_model"): COMMAND,
    ("rollouts/example_selection/selection_methods.py", "load_selector"): COMMAND,
    ("rollouts/example_selection/selection_methods.py", "load_selector_encoders"): COMMAND,
    ("rollouts/embeddings.py", "from_pretrained"): COMMAND,
    ("rollouts/embeddings.py", "load_selector_encoders"): COMMAND,
    ("rollouts/factor_reports.py", "load_factor_predictor"): COMMAND,
    ("rollouts/factor_routing.py", "load_factor_config"): COMMAND,
    ("rollouts/factor_routing.py", "load_factor_predictor"): COMMAND,
    ("rollouts/frozen_vlm/engine.py", "load_processor"): COMMAND,
    ("rollouts/frozen_vlm/engine.py", "load_vlm"): COMMAND,
    ("trainers/diagnosis/backends/vllm.py", "load_processor"): "as vLLM does, which is refused beside a revision",
    ("trainers/diagnosis/log_probs.py", "load_vlm"): "a checkpoint of the run",
    ("trainers/factors.py", "make_predictor"): "a program's name of a model; one at a revision it loads itself",
    ("trainers/factors.py", "stored_factors"): "a program's name of a model; one at a revision it loads itself",
    ("trainers/mixins/checkpoints.py", "from_pretrained"): "a folder of the run",
    ("trainers/setup/adapter_targets.py", "lora_config"): "adapters that are only compared with the model's modules",
    ("trainers/preferences/model.py", "reward_adapters"): "adapters that are only compared with the model's modules",
    ("trainers/run/origin.py", "source_content"): "files and folders, which have no revisions",
}
"""(file, what it calls) -> why no revision is passed there."""


def _says_revision(name: str) -> bool:
    return name in ("revision", "hub") or name.endswith("_revision")


def _functions(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, int | None]]:
    """(name, place among the arguments of a call) of public functions that take a revision."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            names = [one.arg for one in node.args.args if one.arg not in ("self", "cls")]
            places = [place for place, name in enumerate(names) if _says_revision(name)]
            if places or any(_says_revision(one.arg) for one in node.args.kwonlyargs):
                yield node.name, places[0] if places else None


def _calls(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.Call]]:
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield (node.func.id if isinstance(node.func, ast.Name) else node.func.attr), node


def _passes(call: ast.Call, places: Collection[int | None]) -> bool:
    named = any(one.arg is None or _says_revision(one.arg) for one in call.keywords)
    return named or any(place is not None and len(call.args) > place for place in places)


def test_p12_every_call_says_which_revision():
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    nodes = cache(lambda path: list(ast.walk(ast.parse(texts[path]))))
    takers: dict[str, set[int | None]] = {name: set() for name in OF_LIBRARIES}
    for path in texts:
        for name, place in _functions(nodes(path)) if re.search("revision|hub", texts[path]) else ():
            takers.setdefault(name, set()).add(place)
    found = {
        (path, name)
        for path, text in texts.items()
        if any(f"{name}(" in text for name in takers)
        for name, call in _calls(nodes(path))
        if name in takers and not _passes(call, takers[name])
    }
    assert {"load_vlm", "load_processor", "from_backbone", "base_of_adapters", "load_selector"} <= takers.keys()
    assert sorted(found - WITHOUT_REVISION.keys()) == []  # pass a revision, or say above why there is none
    assert sorted(WITHOUT_REVISION.keys() - found) == []
