"""What must be found wrong with a recipe before anything is trained or written, each by its own message."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from factor_runs import write_labelled
from PIL import Image
from preference_runs import write_preferences
from stored_groups import write_completion_groups, write_pointer_groups

from trainers.setup.evaluation_rows import hold_out, prompt_content, unseen_rows

METHODS = ("grpo", "sft", "rce", "offline_grpo", "reward", "factors")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat_rows(count: int = 6, word: str = "say") -> list[dict]:
    return [
        {"prompt": [{"role": "user", "content": f"{word} {number}"}], "completion": str(number), "answer": "x"}
        for number in range(count)
    ]


@pytest.fixture
def run(tiny_model, tmp_path, capsys, monkeypatch):
    """Function: method and keys of a recipe -> exit status and what was printed; nothing may have been written."""
    monkeypatch.setattr(sys, "argv", ["trainer"])

    def start(method: str, **keys) -> tuple[int, str]:
        output = tmp_path / "never" / "made"
        defaults = {"output_dir": str(output), "use_cpu": True, "bf16": False, "validate_only": True}
        defaults |= {"model_name_or_path": str(tiny_model)} | KEYS[method](tmp_path)
        recipe = tmp_path / "recipe.yaml"
        given = {key: value for key, value in (defaults | keys).items() if value != "leave out"}
        recipe.write_text(json.dumps(given), encoding="utf-8")
        status = 0
        try:
            importlib.import_module(f"trainers.{method}").main(["--config", str(recipe)])
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        assert not output.parent.exists()
        return status, printed.out + printed.err

    return start


def refusal(found: tuple[int, str]) -> str:
    """The only message of a run that was refused."""
    status, printed = found
    assert status == 1, printed
    assert "Traceback" not in printed
    return printed[printed.index("error: ") :].strip()


def _grpo(folder: Path) -> dict:
    source = write_rows(folder / "rows" / "train.jsonl", chat_rows())
    write_rows(folder / "rows" / "validation.jsonl", chat_rows(4, "tell"))
    return {"dataset_name": str(source.parent), "reward_funcs": ["strict_xml_format"], "num_generations": 2}


def _sft(folder: Path) -> dict:
    return {"dataset_name": _grpo(folder)["dataset_name"]}


def _groups(folder: Path) -> dict:
    groups = write_pointer_groups(folder / "groups", queries=6)
    tables = {f"{name}_table": str(groups / f"{plural}.safetensors")
              for name, plural in (("query", "queries"), ("example", "examples"))}  # fmt: skip
    return {"dataset_name": str(groups), "model_name_or_path": "leave out", "selector": {"hidden_size": 8}, **tables}


def _reward(folder: Path) -> dict:
    return {"dataset_name": str(write_preferences(folder / "preferences", rows=8)), "own_folder": False}


def _factors(folder: Path) -> dict:
    backbone = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    labelled = write_labelled(folder / "labelled", pictures=8)
    return {"dataset_name": str(labelled), "model_name_or_path": "leave out", "backbone": backbone}


KEYS = {"grpo": _grpo, "sft": _sft, "rce": _groups, "offline_grpo": _groups, "reward": _reward, "factors": _factors}
"""What a valid recipe of each method says of its data and model."""
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}


@pytest.mark.parametrize("method", METHODS)
def test_a_right_recipe_is_valid(run, method):
    status, printed = run(method, **EVALUATES)
    assert status == 0, printed
    assert printed.splitlines()[-1] == "valid"


# -- N2: what is evaluated on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "sft", "rce", "offline_grpo", "reward"])
def test_n02_one_file_is_not_evaluated_on(run, tmp_path, method):
    file = Path(KEYS[method](tmp_path)["dataset_name"]) / "train.jsonl"
    message = refusal(run(method, dataset_name=str(file), **EVALUATES))
    assert message.startswith(f"error: eval_strategy: {file} is one file without splits, all of which is trained on")
    assert "eval_dataset_name" in message
    assert "eval_share" in message


@pytest.mark.parametrize("method", METHODS)
def test_n02_the_training_split_is_not_evaluated_on(run, method):
    message = refusal(run(method, dataset_test_split="train", **EVALUATES))
    assert message.startswith("error: dataset_test_split: 'train' is also the split that is trained on")


@pytest.mark.parametrize("method", METHODS)
def test_n02_equal_content_under_another_name_is_not_evaluated_on(run, tmp_path, method):
    folder = Path(KEYS[method](tmp_path)["dataset_name"])
    copy = folder / "copy.jsonl"
    copy.write_text((folder / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    message = refusal(run(method, eval_dataset_name=str(copy), **EVALUATES))
    assert "have the prompt and images of a training row; it must be on other rows" in message
    assert str(copy) in message


@pytest.mark.parametrize("method", METHODS)
def test_n02_another_file_is_evaluated_on(run, tmp_path, method):
    folder = Path(KEYS[method](tmp_path)["dataset_name"])
    other = (folder / "validation.jsonl").rename(folder / "other.jsonl")
    train = folder if method == "factors" else folder / "train.jsonl"
    status, printed = run(method, dataset_name=str(train), eval_dataset_name=str(other), **EVALUATES)
    assert status == 0, printed


@pytest.mark.parametrize("method", METHODS)
def test_n02_a_share_is_held_out(run, tmp_path, method):
    folder = Path(KEYS[method](tmp_path)["dataset_name"])
    train = folder if method == "factors" else folder / "train.jsonl"
    status, printed = run(method, dataset_name=str(train), eval_share=0.25, **EVALUATES)
    assert status == 0, printed
    assert "held out to evaluate on: " in printed


def test_n02_a_final_split_that_is_trained_on(run):
    assert "have the prompt and images of a training row" in refusal(run("factors", dataset_final_split="train"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_share": 0.5}, "eval_share: nothing is evaluated with eval_strategy: no"),
        ({"eval_dataset_name": "x.jsonl"}, "eval_dataset_name: nothing is evaluated with eval_strategy: no"),
        ({"eval_share": 1.0, **EVALUATES}, "key 'eval_share': expected a number from above 0 to below 1, found 1.0"),
        ({"eval_share": 0.5, "eval_dataset_name": "x", **EVALUATES}, "both say what is evaluated on"),
    ],
)
def test_n02_keys_that_contradict_each_other(run, keys, message):
    assert message in refusal(run("grpo", **keys))


def _row(text: str, *images) -> dict:
    return {"prompt": [{"role": "user", "content": text}], "images": list(images)}


def test_n02_rows_that_belong_together_stay_on_one_side(tmp_path):
    paths = []
    for number in range(6):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(paths[-1])
    Image.open(paths[0]).save(tmp_path / "again.bmp")
    rows = [_row(f"{asked} {path}", path) for path in paths for asked in ("what", "where")]
    rows += [_row("another", str(tmp_path / "again.bmp")), _row("text"), _row("text"), _row("other")]
    for seed in range(20):
        train, held_out = hold_out(rows, 0.3, seed, prompt_content)
        assert len(train) + len(held_out) == len(rows)
        assert 3 <= len(held_out) <= 5
        of_train = {image for row in train for image in row["images"]} | {row["prompt"][0]["content"] for row in train}
        assert not [row for row in held_out for image in row["images"] if image in of_train]
        assert ("text" in of_train) != any(row["prompt"][0]["content"] == "text" for row in held_out)
        assert (paths[0] in of_train) == (str(tmp_path / "again.bmp") in of_train)
    assert hold_out(rows, 0.3, 7, prompt_content) == hold_out(rows, 0.3, 7, prompt_content)
    assert len({str(hold_out(rows, 0.3, seed, prompt_content)[1]) for seed in range(20)}) > 5


def test_n02_pictures_are_compared_by_what_they_show(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "same.bmp")
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "blue.png")
    red, same, blue = (str(tmp_path / name) for name in ("red.png", "same.bmp", "blue.png"))
    held_out = [_row("what", same), _row("what", blue), _row("where", red), _row("what", Image.open(red))]
    assert len(unseen_rows([_row("what", red)], held_out, prompt_content)) == len(held_out) - 2


@pytest.mark.parametrize(
    ("prompt", "shared"),
    [
        ("un café rouge", 1),
        ([{"role": "user", "content": " Un\tcafe\u0301 \n rouge"}], 1),
        ([{"role": "user", "content": [{"type": "text", "text": "un café rouge"}]}], 1),
        ([{"role": "user", "content": [{"type": "text", "text": "un café "}, {"type": "text", "text": "rouge"}]}], 1),
        ([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "un café rouge"}]}], 1),
        ([{"role": "user", "content": "un café rouge", "name": None}], 1),
        ([{"role": "user", "content": "un café rouge?"}], 0),
        ([{"role": "user", "content": "un cafe rouge"}], 0),
        ([{"role": "user", "content": "uncafé rouge"}], 0),
        ([{"role": "system", "content": "un"}, {"role": "user", "content": "café rouge"}], 0),
        ([{"role": "system", "content": ""}, {"role": "user", "content": "un café rouge"}], 0),
    ],
)
def test_n02_a_prompt_is_the_same_however_it_is_written(prompt, shared):
    picture = Image.new("RGB", (16, 16), "red")
    held_out = [{"prompt": prompt, "images": [picture]}]
    assert len(unseen_rows([_row("un café rouge", picture)], held_out, prompt_content)) == len(held_out) - shared


def test_n02_a_few_shared_rows_are_told_and_allowed(run, tmp_path):
    folder = Path(_grpo(tmp_path)["dataset_name"])
    rows = chat_rows(1) + chat_rows(3, "tell")
    write_rows(folder / "mixed.jsonl", rows)
    status, printed = run("grpo", eval_dataset_name=str(folder / "mixed.jsonl"), **EVALUATES)
    assert status == 0
    assert "note: 1 of 4 rows of " in printed


# -- P4: a table for each split ---------------------------------------------------------------------------------------


@pytest.fixture
def two_tables(tmp_path):
    """Groups whose validation queries have ids that the training queries have too, and a table of their own."""
    train = write_pointer_groups(tmp_path / "train", queries=6, seed=0)
    other = write_pointer_groups(tmp_path / "other", queries=9, seed=1)
    return {
        "dataset_name": str(train / "train.jsonl"),
        "eval_dataset_name": str(other / "train.jsonl"),
        "query_table": str(train / "queries.safetensors"),
        "eval_query_table": str(other / "queries.safetensors"),
        "example_table": str(train / "examples.safetensors"),
    }


@pytest.mark.parametrize("method", ["rce", "offline_grpo", "sft"])
def test_p04_a_table_for_each_split(run, two_tables, method):
    selector = {"policy": "selector", "model_name_or_path": "leave out", "selector": {"hidden_size": 8}}
    status, printed = run(method, **selector, **two_tables, **EVALUATES)
    assert status == 0, printed
    without = two_tables | {"eval_query_table": "leave out"}
    assert "have the prompt and images of a training row" in refusal(run(method, **selector, **without, **EVALUATES))


def test_p04_each_query_has_the_embedding_of_its_own_table(two_tables):
    from data.candidates.embedding_table import EmbeddingTable
    from trainers.groups.arguments import GroupArguments
    from trainers.groups.data import HeldOutId
    from trainers.groups.selectors import load_query_table

    keys = {name: value for name, value in two_tables.items() if name != "example_table"}
    table = load_query_table(GroupArguments(**keys))
    for name, key in (("query_table", lambda query: query), ("eval_query_table", HeldOutId)):
        own = EmbeddingTable.load(two_tables[name])
        for query in (0, 3, 5):
            assert (table.values[table.rows([key(query)])] == own.values[own.rows([query])]).all()


def test_p04_tables_of_other_encoders(run, two_tables, tmp_path):
    import numpy as np

    from data.candidates.embedding_table import EmbeddingTable

    EmbeddingTable([0], np.ones((1, 3), dtype=np.float32)).save(tmp_path / "narrow.safetensors")
    keys = two_tables | {"eval_query_table": str(tmp_path / "narrow.safetensors")}
    assert "eval_query_table: embeddings: two tables made by different encoders" in refusal(
        run("rce", **keys, **EVALUATES)
    )


def test_p04_a_vlm_has_no_tables(run, tmp_path):
    rows = [{"prompt": row["prompt"], "gold": "an answer of some words", "images": []} for row in chat_rows(2)]
    groups = write_completion_groups(tmp_path / "completions", rows)
    keys = {"policy": "vlm", "dataset_name": str(groups), "eval_query_table": "x", "query_table": "leave out"}
    message = refusal(run("rce", **keys, example_table="leave out", selector="leave out", **EVALUATES))
    assert "eval_query_table: only policy: selector reads it" in message


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

    from trainers.reward import from_backbone, reward_adapters
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


# -- T8: adapters of modules that the model does not have -------------------------------------------------------------

LINEAR = "down_proj, fc1, fc2, gate_proj, k_proj, lm_head, o_proj, proj, q_proj, qkv, up_proj, v_proj"
WRONG_TARGETS = [
    ({"lora_target_modules": ["q_prj", "v_proj"]}, "lora_target_modules: 'q_prj' names no module of {model}; "
     "did you mean 'q_proj'"),
    ({"lora_target_modules": ["query_key"]}, "lora_target_modules: 'query_key' names no module of {model}; "),
    ({"lora_target_modules": [r".*\.self_attn\.[qk]_prj"]}, r"lora_target_modules: '.*\.self_attn\.[qk]_prj' names "),
    ({"lora_target_modules": ["(q_proj"]}, "lora_target_modules: '(q_proj' is no regular expression: "),
    ({"lora_target_modules": ["mlp"]}, "lora_target_modules: 'mlp' names 'model."),
    ({"lora_target_modules": ["qkv", "q_proj"], "freeze_vision_tower": True}, "lora_target_modules: 'qkv' names only "
     "modules that get no adapters here (frozen, or trained in full) of {model}; expected all-linear, some of "),
    ({"lora_modules_to_save": ["embed_token"]}, "lora_modules_to_save: 'embed_token' is no name in {model}; "
     "did you mean 'embed_tokens'"),
    ({"lora_target_parameters": ["gate.weigth"]}, "lora_target_parameters: 'gate.weigth' is no name in {model}; "),
]  # fmt: skip
TAKE_LORA = {
    "grpo": "Qwen2VLForConditionalGeneration",
    "sft": "Qwen2VLForConditionalGeneration",
    "rce": "Qwen2VLForConditionalGeneration",
    "offline_grpo": "Qwen2VLForConditionalGeneration",
    "reward": "Qwen2VLForRewardModel",
}


def _on_vlm(method: str, folder: Path, model: Path) -> dict:
    """Keys that make a recipe of stored groups one of a VLM."""
    if method not in ("rce", "offline_grpo"):
        return {}
    rows = [{"prompt": row["prompt"], "gold": "an answer of some words", "images": []} for row in chat_rows(4)]
    groups = write_completion_groups(folder / "completions", rows)
    tables = {"query_table": "leave out", "example_table": "leave out", "selector": "leave out"}
    return {"policy": "vlm", "dataset_name": str(groups), "model_name_or_path": str(model), **tables}


@pytest.mark.parametrize("method", TAKE_LORA)
def test_t08_adapters_of_modules_that_do_not_exist(run, tmp_path, tiny_model, method):
    vlm = _on_vlm(method, tmp_path, tiny_model)
    for keys, expected in WRONG_TARGETS if method == "grpo" else WRONG_TARGETS[:2]:
        message = refusal(run(method, use_peft=True, **vlm, **keys))
        assert message.startswith(f"error: {expected.format(model=TAKE_LORA[method])}")
        if "query_key" in str(keys) and method != "reward":
            known = f"expected all-linear, some of {LINEAR}, or one pattern of names such as "
            assert f"{known}model.visual.blocks.0.attn.qkv" in message


@pytest.mark.parametrize("method", TAKE_LORA)
@pytest.mark.parametrize("targets", [["q_proj"], ["fc1", "q_proj"], [r".*language_model.*\.(q|v)_proj"]], ids=str)
def test_t08_adapters_of_modules_that_exist(run, tmp_path, tiny_model, method, targets):
    vlm = _on_vlm(method, tmp_path, tiny_model)
    status, printed = run(method, use_peft=True, lora_target_modules=targets, **vlm)
    assert status == 0, printed


def test_t08_one_name_is_a_name_as_in_a_longer_list():
    from trl import ModelConfig

    from trainers.setup.model import lora_config

    assert lora_config(ModelConfig(use_peft=True, lora_target_modules=["q_proj"]), False).target_modules == {"q_proj"}
    pattern = ModelConfig(use_peft=True, lora_target_modules=[r".*q_proj"])
    assert lora_config(pattern, False).target_modules == r".*q_proj"


# -- T25: values that are found late, or never ------------------------------------------------------------------------

WRONG_VALUES = {
    "all": [
        ("optim", "adamw_torhc", "adamw_torch_fused"),
        ("lr_scheduler_type", "cosinus", "cosine_with_restarts"),
        ("eval_strategy", "sometimes", "one of no, steps, epoch"),
        ("save_strategy", "never", "one of no, steps, epoch, best"),
        ("logging_strategy", "step", "one of no, steps, epoch"),
        ("hub_strategy", "ever_save", "every_save"),
        ("report_to", "tensorbord", "tensorboard"),
        ("report_to", ["wandb", "tensorbord"], "found 'tensorbord'"),
        ("dtype", "bf16", "one of auto, bfloat16, float16, float32"),
        ("attn_implementation", "flash", "flash_attention_2"),
        ("bnb_4bit_quant_type", "nf5", "one of fp4, nf4"),
        ("bnb_4bit_quant_storage", "int4", "uint8"),
        ("learning_rate", -1e-6, "expected at least 0, found -1e-06"),
        ("learning_rate", "fast", "expected float, found 'fast'"),
        ("learning_rate", float("nan"), "at least 0"),
        ("num_train_epochs", 0, "above 0"),
        ("max_steps", 0, "expected -1"),
        ("max_steps", -3, "expected -1"),
        ("max_steps", None, "expected int, found null"),
        ("per_device_train_batch_size", 0, "at least 1"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("save_steps", 0, "above 0"),
        ("logging_steps", -1, "above 0"),
        ("save_total_limit", 0, "at least 1"),
        ("max_grad_norm", -1.0, "at least 0"),
        ("weight_decay", -0.1, "at least 0"),
        ("adam_beta1", 1.0, "a number from 0 to below 1"),
        ("warmup_steps", -1, "at least 0"),
        ("seed", -1, "a number from 0 to"),
        ("lora_r", 0, "at least 1"),
        ("lora_dropout", 1.5, "a number from 0 to below 1"),
    ],
    "grpo": [
        ("loss_type", "GRPO", "one of grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo, vespo, found 'GRPO'"),
        ("importance_sampling_level", "tokens", "one of token, sequence"),
        ("scale_rewards", "groups", "one of group, batch, none"),
        ("scale_rewards", False, "one of group, batch, none"),
        ("multi_objective_aggregation", "sum", "one of sum_then_normalize, normalize_then_sum"),
        ("vllm_mode", "colocated", "one of colocate, server"),
        ("vllm_importance_sampling_mode", "mask", "token_truncate"),
        ("max_completion_length", None, "expected a value, found null"),
        ("max_completion_length", 0, "at least 1"),
        ("num_generations", 1, "at least 2, found 1"),
        ("num_generations", None, "found null"),
        ("temperature", 0, "above 0"),
        ("top_p", 2, "a number from above 0 to 1, found 2"),
        ("top_p", 0.0, "a number from above 0 to 1"),
        ("top_k", -1, "at least 0"),
        ("min_p", 1.5, "a number from 0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("beta", -0.1, "at least 0"),
        ("epsilon", -0.2, "at least 0"),
        ("num_iterations", 0, "at least 1"),
        ("vllm_gpu_memory_utilization", 30, "a number from above 0 to 1"),
        ("temperature_schedule", "cosine", "'linear'"),
    ],
    "sft": [("loss_type", "dapo", "one of nll, dft"), ("max_length", 10, "max_length cuts images in two")],
    "reward": [("loss_type", "bt", "'bradley_terry'"), ("center_rewards_coefficient", -1, "at least 0")],
    "rce": [("reward_normalization", "zscore", "'z_score'"), ("label_smoothing_factor", 1.0, "below 1")],
    "offline_grpo": [("ratio_level", "token", "'sequence'"), ("clip_epsilon", 0, "above 0")],
    "factors": [("pos_weight", "equal", "'balanced'"), ("image_size", 2, "at least 8")],
}
CASES = [(method, *case) for method in METHODS for case in WRONG_VALUES["all"] + WRONG_VALUES[method]]


@pytest.fixture(scope="module")
def keys_of():
    """Function: method -> the dataclasses that read its recipes."""
    from trl import ModelConfig

    names = {"grpo": ("GRPOScriptArguments", "GRPOConfig"), "sft": ("DataArguments", "SFTConfig"),
             "rce": ("GroupArguments", "RCEConfig"), "offline_grpo": ("GroupArguments", "OfflineGRPOConfig"),
             "reward": ("PreferenceArguments", "RewardConfig"),
             "factors": ("FactorArguments", "FactorTrainingConfig")}  # fmt: skip

    def read(method: str) -> tuple:
        module = importlib.import_module(f"trainers.{method}")
        return (*(getattr(module, name) for name in names[method]), ModelConfig)

    return read


@pytest.mark.parametrize(("method", "key", "value", "message"), CASES)
def test_t25_a_value_that_is_not_allowed(keys_of, tmp_path, method, key, value, message):
    from trainers.setup.recipes import RecipeError, parse_recipe

    recipe = tmp_path / "recipe.yaml"
    given = {"dataset_name": "somewhere", "use_cpu": True, "bf16": False, key: value}
    given |= {"reward_funcs": ["strict_xml_format"]} if method == "grpo" else {}
    recipe.write_text(json.dumps(given, indent=0, allow_nan=True).replace("NaN", ".nan"), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        parse_recipe(keys_of(method), ["--config", str(recipe)])
    assert message in str(error.value)
    assert key in str(error.value)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize(
    ("method", "key", "value"), [case[:3] for case in CASES if case[0] == "grpo" and isinstance(case[2], int | str)]
)
def test_t25_the_same_on_the_command_line(keys_of, method, key, value):
    from trainers.setup.recipes import RecipeError, parse_recipe

    argv = ["--dataset_name", "x", "--reward_funcs", "strict_xml_format", f"--{key}", json.dumps(value).strip('"')]
    with pytest.raises(RecipeError, match=f"command line: --{key}: expected "):
        parse_recipe(keys_of(method), argv)


PYTHON = [
    ("grpo", "GRPOConfig", {"loss_type": "GRPO"}, "loss_type: expected one of grpo"),
    ("grpo", "GRPOConfig", {"top_p": 2.0}, "top_p: expected a number from above 0 to 1, found 2.0"),
    ("grpo", "GRPOConfig", {"num_generations": 1}, "num_generations: expected at least 2"),
    ("grpo", "GRPOConfig", {"temperature_schedule": "cosine"}, "temperature_schedule: expected one of constant"),
    ("sft", "SFTConfig", {"learning_rate": -1.0}, "learning_rate: expected at least 0"),
    ("rce", "RCEConfig", {"reward_normalization": "zscore"}, "reward_normalization: expected one of raw"),
    ("offline_grpo", "OfflineGRPOConfig", {"ratio_level": "token"}, "ratio_level: expected one of sequence, step"),
    ("reward", "RewardConfig", {"report_to": "tensorbord"}, "report_to: expected one of none, all"),
    ("factors", "FactorTrainingConfig", {"pos_weight": "equal"}, "pos_weight: expected one of none, balanced"),
]


@pytest.mark.parametrize(("module", "name", "settings", "message"), PYTHON)
def test_t25_the_same_from_python(tmp_path, module, name, settings, message):
    cls = getattr(importlib.import_module(f"trainers.{module}"), name)
    with pytest.raises(ValueError, match=message):
        cls(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)


def test_t25_what_trl_takes_is_what_is_listed():
    """Each listed value is compared with somewhere in TRL's own trainer, and no other text is."""
    import inspect
    import re

    from trl.trainer import grpo_trainer

    from trainers.setup.setting_rules import CHOICES

    source = inspect.getsource(grpo_trainer)
    for key in ("loss_type", "importance_sampling_level", "scale_rewards", "multi_objective_aggregation"):
        compared = re.findall(rf"\.{key} (?:[!=]=|in|not in) (\[[^\]]*\]|\"[a-z_]+\")", source)
        values = {value for found in compared for value in re.findall(r"\"([a-z_]+)\"", found)}
        assert values == set(CHOICES[key]), key


def test_t25_trackers_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    from trainers.setup.checks import TRACKERS as NEEDED
    from trainers.setup.setting_rules import TRACKERS

    assert set(TRACKERS) == set(NEEDED) == set(INTEGRATION_TO_CALLBACK)


# -- T8: what libraries find out late, or never -----------------------------------------------------------------------

RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 8}
REFUSED = [
    ("sft", {"packing": True}, "error: packing: expected false: sequences would be cut"),
    ("sft", {"padding_free": True}, "error: padding_free: expected false: TRL has it for texts only"),
    ("sft", {"assistant_only_loss": True}, "error: assistant_only_loss: expected false: rows are prompt and"),
    ("sft", {"chat_template_path": "some/model"}, "chat_template_path: expected a file *.jinja or *.j2, which suits"),
    ("sft", {"chat_template_path": "./no.jinja"}, "error: chat_template_path: './no.jinja': no such file"),
    ("reward", {"chat_template_path": "./none"}, "error: chat_template_path: './none': no such folder"),
    ("sft", {"eos_token": "<nope>"}, "error: eos_token: the model's tokenizer has no token '<nope>'"),
    ("sft", {"pad_token": "<nope>"}, "error: pad_token: the model's tokenizer has no token '<nope>'"),
    ("reward", {"eos_token": "<nope>"}, "error: eos_token: the model's tokenizer has no token '<nope>'"),
    ("grpo", {"load_in_4bit": True}, "error: load_in_4bit: quantised weights are not trained themselves"),
    ("reward", {"load_in_8bit": True}, "error: load_in_8bit: quantised weights are not trained themselves"),
    ("offline_grpo", {"use_peft": True}, "error: use_peft: a selector is trained as it is; leave it out"),
    ("factors", {"use_peft": True}, "error: use_peft: a factor predictor is trained as it is; leave it out"),
    ("grpo", {"model_init_kwargs": {"dtipe": 1}}, "model_init_kwargs: unknown key 'dtipe'; did you mean 'dtype'"),
    ("reward", {"model_init_kwargs": {"foo": 1}}, "error: model_init_kwargs: unknown key 'foo'; "),
    ("grpo", {"model_init_kwargs": {"dtype": "float99"}}, "dtype: expected one of auto, bfloat16, float16, float32, "),
    ("grpo", {"generation_kwargs": {"top_q": 1}}, "generation_kwargs: unknown key 'top_q'; did you mean 'top_"),
    ("sft", {"lr_scheduler_kwargs": {"foo": 1}}, "lr_scheduler_kwargs: unknown key 'foo'; it takes none"),
    ("rce", {"lr_scheduler_type": "warmup_stable_decay"}, "warmup_stable_decay: get_wsd_schedule() missing"),
    ("rce", {"lr_scheduler_type": "cosine_with_min_lr"}, "cosine_with_min_lr: One of min_lr or min_lr_rate should be"),
    ("grpo", {"gradient_checkpointing_kwargs": "x"}, "'gradient_checkpointing_kwargs': expected a mapping, found 'x'"),
    ("sft", {"gradient_checkpointing_kwargs": {"x": 1}}, "gradient_checkpointing_kwargs: unknown key 'x'; expected"),
    ("sft", {"torch_compile_backend": "foo"}, "torch_compile_backend: expected one of no, eager, "),
    ("factors", {"optim": "sgd", "optim_args": "a"}, "optim_args: expected KEY=VALUE, KEY=VALUE, ..., found 'a'"),
    (
        "grpo",
        {"accelerator_config": "no.json"},
        "expected a mapping or a JSON file, found 'no.json', which is no file",
    ),
    ("rce", {"resume_from_checkpoint": "./none"}, "resume_from_checkpoint: no checkpoint in 'none' (expected trainer"),
    ("reward", {"head_activation": "relux"}, "head_activation: did you mean 'relu' or "),
    (
        "factors",
        {"backbone": RESNET | {"hidden_sise": 1}},
        "backbone: unknown key 'hidden_sise'; did you mean 'hidden",
    ),
    ("factors", {"backbone": GPT2}, "expected an image model, found GPT2Model"),
    ("reward", {"system_prompt": "a\ud83d"}, "recipe.yaml:1: key 'system_prompt': half of a surrogate pair"),
    ("grpo", {"env": {"A": "\ud83d"}}, "recipe.yaml:1: key 'env': half of a surrogate pair"),
    ("factors", {"backbone": "./none"}, "backbone: expected a mapping with its model_type, found './none'"),
]
"""Method, keys, and what the message says."""
WSD = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 50}}
ALLOWED = {
    "grpo": {"generation_kwargs": {"top_k": 5}, "model_init_kwargs": {"dtype": "float32", "output_attentions": False}}
    | WSD,
    "sft": {"eos_token": "<|im_end|>", "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "reward": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    "rce": {"optim": "adamw_torch", "optim_args": "betas=0.9, eps=1e-8", "lr_scheduler_type": "reduce_lr_on_plateau"}
    | EVALUATES,
    "offline_grpo": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1e-9}},
}


@pytest.mark.parametrize(("method", "keys", "message"), REFUSED)
def test_t08_what_the_run_would_find_out_late(run, method, keys, message):
    assert message in refusal(run(method, **keys))


@pytest.mark.parametrize("method", ALLOWED)
def test_t08_right_keywords(run, method):
    status, printed = run(method, **ALLOWED[method])
    assert status == 0, printed


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_t08_tokens_are_counted_by_the_template_of_the_recipe(run, tmp_path, method):
    template = tmp_path / "long.jinja"
    template.write_text("word " * 3000 + "{% for turn in messages %}{{ turn.content }}{% endfor %}")
    keys = {"chat_template_path": str(template), "max_prompt_length": 2000}
    assert "expected at most 2000 (max_prompt_length)" in refusal(run(method, **keys))


def test_t08_adapters_are_trained_further_on_quantised_weights(monkeypatch):
    from trainers.setup import checks

    monkeypatch.setattr(checks, "base_of_adapters", lambda name, hub: "base" if name == "adapters" else None)
    named = {"model_revision": "main", "use_peft": False, "load_in_4bit": True, "load_in_8bit": False}
    adapters, model = (SimpleNamespace(model_name_or_path=name, **named) for name in ("adapters", "model"))
    weights = SimpleNamespace(load_weights_only=True, resume_from_checkpoint="adapters")
    checks.check_trained_weights("GRPO", SimpleNamespace(), SimpleNamespace(), adapters)
    checks.check_trained_weights("reward", weights, weights, model)
    with pytest.raises(checks.RecipeError, match="load_in_4bit: quantised weights are not trained"):
        checks.check_trained_weights("reward", SimpleNamespace(), SimpleNamespace(), model)


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
