"""What a run would need, and folders that are not there: found before anything is trained or written."""

import json
import shutil
import sys

import pytest
from refused_recipes import EVALUATES, METHODS, refusal


@pytest.mark.parametrize("method", METHODS)
def test_a_right_recipe_is_valid(run, method):
    status, printed = run(method, **EVALUATES)
    assert status == 0, printed
    assert printed.splitlines()[-1] == "valid"


# -- T8: what a run would need ----------------------------------------------------------------------------------------

MISSING = "which is not installed"
NEEDS = [  # keys, and the package that they need
    ({"report_to": "wandb"}, "wandb"),
    ({"report_to": ["tensorboard"]}, "tensorboard"),
    ({"report_to": "trackio"}, "trackio"),
    ({"attn_implementation": "flash_attention_2"}, "flash-attn"),
    ({"attn_implementation": "kernels-community/flash-attn"}, "kernels"),
    ({"use_liger_kernel": True}, "liger-kernel"),
    ({"use_peft": True}, "peft"),
    ({"load_in_4bit": True, "use_peft": True}, "bitsandbytes"),
    ({"optim": "paged_adamw_8bit"}, "bitsandbytes"),
    ({"optim": "adamw_bnb_8bit"}, "bitsandbytes"),
    ({"optim": "galore_adamw"}, "galore-torch"),
    ({"optim": "adamw_torch_8bit"}, "torchao"),
    ({"optim": "stable_adamw"}, "torch-optimi"),
]


@pytest.fixture
def nothing_installed(monkeypatch):
    """As on a machine that has none of the packages that only some recipes need."""
    from trainers.setup import checks

    monkeypatch.setattr(checks, "is_installed", lambda module: module == "peft" and checks.pretend_peft)
    monkeypatch.setattr(checks, "pretend_peft", False, raising=False)
    return checks


@pytest.mark.parametrize(("keys", "package"), NEEDS, ids=lambda value: value if isinstance(value, str) else "")
def test_t08_a_package_that_is_not_installed(run, nothing_installed, keys, package):
    nothing_installed.pretend_peft = "load_in_4bit" in keys
    message = refusal(run("grpo", **keys))
    assert message.endswith(f"needs the package {package}, {MISSING}")
    assert message.startswith(f"error: {next(iter(keys))}: ")


@pytest.mark.parametrize("method", METHODS)
def test_t08_packages_of_every_method(run, nothing_installed, method):
    assert refusal(run(method, report_to="wandb")) == f"error: report_to: wandb needs the package wandb, {MISSING}"


def test_t08_deepspeed_before_anything_is_imported(nothing_installed):
    from trainers.setup.help import check_early
    from trainers.setup.recipe_keys import keys_of_source
    from trainers.setup.recipes import RecipeError

    keys = keys_of_source("sft", ("DataArguments", "SFTConfig", "ModelConfig"))
    with pytest.raises(RecipeError, match="deepspeed: ds.json needs the package deepspeed"):
        check_early("SFT", keys, ["--dataset_name", "x", "--deepspeed", "ds.json"])


def test_t08_vllm(run, nothing_installed):
    assert "error: use_vllm: true needs the package vllm" in refusal(run("grpo", use_vllm=True))


@pytest.mark.parametrize("place", ["/proc/nothing/run", "FILE/run", "FILE", "/dev/null/run"])
def test_t08_a_place_that_cannot_be_written(run, tmp_path, place):
    (tmp_path / "file").write_text("taken", encoding="utf-8")
    place = place.replace("FILE", str(tmp_path / "file"))
    assert refusal(run("sft", output_dir=place)).startswith(f"error: output_dir: {place}: ")


WRONG_METRICS = [
    ("grpo", "eval_kl", "there is no KL with beta: 0"),
    ("grpo", "eval_accuracy", "logs no 'eval_accuracy'; expected"),
    ("grpo", "rewards/vqa_accuracy/mean", "eval_rewards/strict_xml_format/mean"),
    ("sft", "eval_reward", "eval_mean_token_accuracy"),
    ("reward", "eval_kl", "eval_score_gap"),
    ("reward", "lm_loss", "logs no 'lm_loss'"),
    ("rce", "eval_kl", "one of: eval_accuracy, eval_expected_reward, eval_loss"),
    ("offline_grpo", "bce", "one of: eval_accuracy, eval_expected_reward, eval_kl, eval_ratio, eval_loss"),
    ("factors", "eval_accuracy", "did you mean 'subset_accuracy'"),
]


@pytest.mark.parametrize(("method", "metric", "message"), WRONG_METRICS)
def test_t08_a_metric_that_nothing_logs(run, method, metric, message):
    keys = {"metric_for_best_model": metric, "per_device_eval_batch_size": 2, **EVALUATES}
    found = refusal(run(method, **keys))
    assert found.startswith("error: metric_for_best_model: ")
    assert message in found


def test_t08_a_metric_without_an_evaluation(run):
    message = refusal(run("sft", metric_for_best_model="eval_loss"))
    assert message == "error: metric_for_best_model: eval_loss is never measured with eval_strategy: no"


def test_t08_right_metrics(run):
    keys = {"metric_for_best_model": "eval_kl", "beta": 0.1, "per_device_eval_batch_size": 2, **EVALUATES}
    assert run("grpo", **keys)[0] == 0
    assert run("grpo", **keys | {"metric_for_best_model": "rewards/strict_xml_format/std"})[0] == 0
    assert run("reward", metric_for_best_model="lm_loss", lm_loss_weight=0.1, **EVALUATES)[0] == 0


OWN_REWARDS = """
class Needs:
    def __init__(self, scale=1.0):
        self.scale = scale
    def __call__(self, completions, depth, **columns):
        return [0.0] * len(completions)

def needs(completions, colour, **columns):
    return [0.0] * len(completions)

def named_only(completions, *, shade, prompts, completion_ids=None, trainer_state=None):
    return [0.0] * len(completions)

def finds(prompts, completions, answer, limit=3, log_metric=None, **columns):
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize(
    ("reward", "column"),
    [("rewards_in_need.needs", "colour"), ("rewards_in_need.named_only", "shade"), ("rewards_in_need.Needs", "depth"),
     ({"name": "rewards_in_need.Needs", "scale": 2.0}, "depth"), ("vqa_accuracy", "answers")],
)  # fmt: skip
def test_t08_a_column_that_a_reward_needs(run, tmp_path, monkeypatch, reward, column):
    (tmp_path / "rewards_in_need.py").write_text(OWN_REWARDS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rewards_in_need", raising=False)
    assert run("grpo", reward_funcs=["rewards_in_need.finds"])[0] == 0
    assert f"column '{column}'" in refusal(run("grpo", reward_funcs=[reward]))


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_t08_agents_of_the_data_that_the_recipe_lacks(run, report_data, method):
    keys = {"dataset_name": str(report_data), "agents": ["blur_filter", "resolution_filter"]}
    message = refusal(run(method, **keys))
    assert "field 'ground_truth_agents': " in message
    assert message.endswith("is none of the recipe's agents; expected some of blur_filter, resolution_filter")
    assert f"{report_data}: row 'train-0000" in message


@pytest.mark.parametrize("method", ["grpo", "sft", "reward"])
@pytest.mark.parametrize("frozen", [False, True])
def test_t08_lora_alone_takes_all_linear_layers(tiny_model, method, frozen):
    from peft import get_peft_model
    from trl import ModelConfig

    from models.reward.load import from_backbone
    from trainers.preferences.model import reward_adapters
    from trainers.setup.model import lora_config

    asked = ModelConfig(model_name_or_path=str(tiny_model), use_peft=True, lora_r=2)
    if method == "reward":
        model, config = from_backbone(str(tiny_model)), reward_adapters(asked, frozen)
    else:
        from models.families.loading import load_vlm

        model, config = load_vlm(str(tiny_model), "cpu")[0], lora_config(asked, frozen)
    names = [name for name, _ in get_peft_model(model, config).named_parameters() if "lora_A" in name]
    parts = {name.split(".lora_A")[0].rpartition(".")[2] for name in names}
    assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} <= parts
    assert any(".visual." in name for name in names) != frozen
    assert not any("lm_head" in name or "score_head" in name for name in names)


# -- models that are there and cannot be trained ----------------------------------------------------------------------


def _changed(folder, original, name, **values):
    """A copy of a model's folder with other values in one of its files."""
    shutil.copytree(original, folder)
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_a_model_that_is_there_and_cannot_be_loaded(run, method, tiny_model, tmp_path):
    name = _changed(tmp_path / "unknown", tiny_model, "config.json", model_type="no_such_model")
    assert f"model_name_or_path: '{name}' cannot be loaded" in refusal(run(method, model_name_or_path=name))
    name = _changed(tmp_path / "text", tiny_model, "config.json", model_type="qwen2")
    expected = f"'{name}': model_type: expected that of a model which reads images and texts, found 'qwen2'"
    assert expected in refusal(run(method, model_name_or_path=name))
    name = _changed(tmp_path / "odd", tiny_model, "processor_config.json", processor_class="NoSuchProcessor")
    expected = f"'{name}': expected a processor of images and texts, found a tokenizer"
    assert expected in refusal(run(method, model_name_or_path=name))


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
@pytest.mark.parametrize("method", ["grpo", "sft", "reward"])
def test_every_family_is_checked_with_its_own_sizes(run, method, family, tiny_family):
    status, printed = run(method, model_name_or_path=str(tiny_family(family)))
    assert status == 0, printed
    assert "valid" in printed.splitlines()
    assert "cannot be reached" not in printed
    assert "memory estimate for each" in printed


def test_a_model_of_texts_is_no_reward_model(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    message = refusal(run("reward", model_name_or_path=str(tmp_path)))
    assert "model_type: expected that of a model which reads images and texts" in message
    assert "'qwen2'" in message


def test_bounds_that_a_family_does_not_have(run, tiny_family):
    message = refusal(run("sft", model_name_or_path=str(tiny_family("gemma3")), max_pixels=500))
    assert "max_pixels: Gemma3Processor resizes images by rules of its own" in message


# -- P7: folders that are not there -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "sft", "reward"])
@pytest.mark.parametrize("name", ["outputs/tiny_modle", "./nowhere", "/nowhere/at/all", "a/b/c", "../nowhere", "~/x"])
def test_p07_no_such_folder(run, method, name):
    assert refusal(run(method, model_name_or_path=name)).startswith(
        f"error: model_name_or_path: '{name}': no such folder"
    )


def test_p07_a_folder_with_a_similar_name(run, tmp_path):
    (tmp_path / "models" / "tiny_vlm").mkdir(parents=True)
    message = refusal(run("grpo", model_name_or_path=str(tmp_path / "models" / "tiny_vml")))
    assert message.endswith(f"no such folder; there is {tmp_path / 'models' / 'tiny_vlm'}")


def test_p07_a_folder_without_a_model(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no model (no config.json or adapter_config.json)" in refusal(
        run("grpo", model_name_or_path=str(tmp_path / "empty"))
    )
    assert "is a file; expected the folder of a model" in refusal(run("grpo", model_name_or_path=__file__))
    assert "reference_model: './none': no such folder" in refusal(run("offline_grpo", reference_model="./none"))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"use_peft": True}, "lora_dropout of 0.05, which is drawn anew for each row"),
        ({"attn_implementation": "flex_attention"}, "attn_implementation 'flex_attention' takes no such mask"),
    ],
)
@pytest.mark.parametrize("method", ["grpo", "reward"])
def test_prompts_that_must_be_shared_and_cannot_be(run, method, keys, reason):
    message = refusal(run(method, shared_prefix=True, **keys))
    assert message.startswith(f"error: shared_prefix: true: prompts cannot be shared exactly: {reason}")
    status, printed = run(method, shared_prefix=True)
    assert status == 0, printed


def test_a_model_whose_prompts_cannot_be_shared(run, tmp_path, tiny_model):
    """Of a family that shares them, but with windows."""
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    config["text_config"] |= {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    copy = shutil.copytree(tiny_model, tmp_path / "windows")
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    message = refusal(run("grpo", shared_prefix=True, model_name_or_path=str(copy)))
    assert message.endswith("the model has layers with a sliding window")


def test_a_loss_of_experts_goes_with_no_shared_prompts(run, tiny_family):
    mixture = {"model_name_or_path": str(tiny_family("qwen3_vl_moe")), "shared_prefix": True}
    message = refusal(run("grpo", **mixture))
    assert message.endswith(
        "a load-balancing loss, of each row's own prompt too; router_aux_loss_coef: 0 leaves it out"
    )
    for method, keys in (("grpo", {"router_aux_loss_coef": 0}), ("reward", {})):
        status, printed = run(method, **mixture, **keys)
        assert status == 0, printed
