"""Reading recipes strictly, and every recipe of the repository."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import trl
import yaml
from factor_runs import write_labelled
from places import ROOT
from preference_runs import write_preferences
from tiny_encoders import write_coloured_groups, write_coloured_records
from trl import ModelConfig

from data.cli.package_files import ACCELERATE_CONFIGS, names_in
from trainers.factors import FactorTrainingConfig
from trainers.groups.arguments import GroupArguments
from trainers.grpo import GRPOConfig, GRPOScriptArguments
from trainers.labels.data import FactorArguments
from trainers.offline_grpo import OfflineGRPOConfig
from trainers.preferences.data import PreferenceArguments
from trainers.rce import RCEConfig
from trainers.reward import RewardConfig
from trainers.setup.checks import is_installed
from trainers.setup.recipes import DataArguments, RecipeError, parse_recipe
from trainers.sft import SelectorSFTConfig, SFTConfig

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
GRPO = (GRPOScriptArguments, GRPOConfig, ModelConfig)
SFT = (DataArguments, SFTConfig, ModelConfig)
SELECTOR_SFT = (GroupArguments, SelectorSFTConfig, ModelConfig)
RCE = (GroupArguments, RCEConfig, ModelConfig)
OFFLINE_GRPO = (GroupArguments, OfflineGRPOConfig, ModelConfig)
REWARD = (PreferenceArguments, RewardConfig, ModelConfig)
FACTORS = (FactorArguments, FactorTrainingConfig, ModelConfig)
METHODS = {  # part of a recipe's name, the first that fits: script and what parses it
    "factors": ("trainers/factors.py", FACTORS),
    "selector_sft": ("trainers/sft.py", SELECTOR_SFT),
    "selector_v2_lora": ("trainers/sft.py", SELECTOR_SFT),
    "sft": ("trainers/sft.py", SFT),
    "rce": ("trainers/rce.py", RCE),
    "offline_grpo": ("trainers/offline_grpo.py", OFFLINE_GRPO),
    "grpo_reward_model": ("trainers/grpo.py", GRPO),
    "reward_model": ("trainers/reward.py", REWARD),
    "": ("trainers/grpo.py", GRPO),
}
MINIMAL = "dataset_name: somewhere\nreward_funcs: [strict_xml_format]\nuse_cpu: true\nbf16: false\n"


def method_of(recipe: Path) -> tuple[str, tuple]:
    return next(method for part, method in METHODS.items() if part in recipe.stem)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses(recipe):
    parsed = parse_recipe(method_of(recipe)[1], ["--config", str(recipe), "--validate_only", "true"])
    assert parsed[1].output_dir.startswith("outputs/")
    assert parsed[-1].path == str(recipe)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_how_to_run_it_and_on_what(recipe):
    head = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    method = Path(method_of(recipe)[0]).stem.replace("_", "-")
    command, launched = next(line for line in head if "--launch" in line).split(" --launch ")
    assert command == f"#   vlm-posttrain {method} --config {recipe.stem}"
    assert launched in names_in(ACCELERATE_CONFIGS)
    assert any("Hardware:" in line and "GB" in line for line in head)
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if "accelerate_config" in keys:
        assert keys["accelerate_config"] == f"accelerate_configs/{launched}.yaml"


OF_THE_RUN = {"model_name_or_path", "dataset_name", "query_table", "example_table", "output_dir", "use_cpu", "bf16"}
OF_THE_RUN |= {"logging_steps", "save_strategy"}


@pytest.mark.parametrize("stage", ["sft", "rce", "offline_grpo"])
def test_selectors_are_trained_on_gpus_by_what_was_measured_on_the_test_bed(stage):
    """docs/example_selection.md has the measurements of the recipes for CPUs."""
    paths = (ROOT / "recipes" / f"selector_{stage}{kind}.yaml" for kind in ("_tiny", ""))
    measured, real = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths)
    method = {key: value for key, value in measured.items() if key not in OF_THE_RUN}
    assert len(method) > 9
    assert {key: real.get(key) for key in method} == method
    assert "reference_model" not in real


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_validates_as_a_command(recipe, data_of, model_of_reports, run_command, tmp_path):
    """As a user would call it, on a machine without GPU, model or Hub."""
    tiny_vlm = "tiny" in recipe.stem and "selector" not in recipe.stem and "factors" not in recipe.stem
    model = ["--model_name_or_path", model_of_reports] if tiny_vlm else []
    by_vllm = "use_vllm: true" in recipe.read_text(encoding="utf-8")
    vllm = ["--use_vllm", "false"] if by_vllm and not is_installed("vllm") else []
    done = run_command(
        method_of(recipe)[0],
        *("--config", recipe, *data_of(recipe), "--output_dir", tmp_path, "--validate_only", "true", *model, *vllm),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "valid"
    assert ("memory estimate" in done.stdout) == ("selector_" not in recipe.stem)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def data_of(report_data, vqa_data, pointer_groups, completion_groups, tiny_reward_model, tmp_path_factory):
    """Function: recipe -> arguments that point it to small data of its kind."""
    from models.selectors.pointer import PointerSelector, PointerSelectorConfig

    preferences = write_preferences(tmp_path_factory.mktemp("preferences"))
    scored_by = json.dumps({"name": "reward_model", "model": str(tiny_reward_model)})
    selector = tmp_path_factory.mktemp("selector")
    PointerSelector(PointerSelectorConfig(embedding_size=8, hidden_size=16)).save_pretrained(selector)

    records = write_coloured_records(tmp_path_factory.mktemp("records"))
    coloured = write_coloured_groups(tmp_path_factory.mktemp("coloured"), records)

    def arguments(recipe: Path) -> list:
        if "v2_lora" in recipe.stem:
            field = ["--reward_field", "reward"]
            return ["--dataset_name", coloured, "--query_data", records, "--example_data", records, *field]
        if "selector_" in recipe.stem:
            tables = [("query", "queries"), ("example", "examples")]
            files = [
                part for key, name in tables for part in (f"--{key}_table", pointer_groups / f"{name}.safetensors")
            ]
            start = [] if "sft" in recipe.stem else ["--model_name_or_path", selector]
            return ["--dataset_name", pointer_groups, *files, *start]
        if method_of(recipe)[1] == FACTORS:
            return ["--dataset_name", write_labelled(preferences.parent / "factors", pictures=4)]
        if method_of(recipe)[1] in (RCE, OFFLINE_GRPO):
            return ["--dataset_name", completion_groups]
        if method_of(recipe)[1] == REWARD:
            return ["--dataset_name", preferences]
        if "grpo_reward_model" in recipe.stem:
            return ["--dataset_name", vqa_data, "--reward_funcs", scored_by, "sentence_format", "vqa_accuracy"]
        if recipe.stem == "reward_model_sft_tiny":
            return ["--dataset_name", vqa_data]
        return ["--dataset_name", vqa_data if "vqa" in recipe.stem else report_data]

    return arguments


@pytest.fixture(scope="session")
def model_of_reports(report_data, tmp_path_factory):
    """A tiny model whose tokenizer is trained on the reports, as the quick start's is."""
    from models.tiny import main

    folder = tmp_path_factory.mktemp("model_of_reports")
    main(["--output_dir", str(folder), "--hidden_size", "32", "--corpus", str(report_data / "train.jsonl")])
    return folder


@pytest.fixture(scope="session")
def vqa_data(tmp_path_factory):
    from data.vqa import main

    folder = tmp_path_factory.mktemp("vqa")
    main(["--source", "easy_vqa", "--output_dir", str(folder), "--limit", "20"])
    return folder


@pytest.fixture
def read(tmp_path):
    """Function: text of a recipe, and more arguments -> what `parse_recipe` gives."""

    def parse(text: str, *arguments: str):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return parse_recipe(GRPO, ["--config", str(path), *arguments])

    return parse


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        (
            "learnin_rate: 1.0\n",
            r"recipe\.yaml:5: unknown key 'learnin_rate'; did you mean 'learning_rate'.*`--help` lists",
        ),
        ("use_cpu: false\n", r"recipe\.yaml:5: duplicate key 'use_cpu' \(first on line 3\)"),
        ("num_generations: many\n", r"recipe\.yaml:5: key 'num_generations': expected int \| None, found 'many'"),
        ("advantage_clip: [1]\n", r"recipe\.yaml:5: key 'advantage_clip': expected float \| None, found \[1\]"),
        ("temperature_schedule: rising\n", r"recipe\.yaml:5: key 'temperature_schedule'.*'rising'"),
        ("adaptive_kl: true\n", r"recipe\.yaml: adaptive_kl needs the KL to a reference model: set beta above 0"),
        ("min_pixels: 100\nmax_pixels: 10\n", r"min_pixels \(100\) must not exceed max_pixels \(10\)"),
        ("max_pixels: -1\n", r"max_pixels': expected at least 1, found -1"),
        ("a: [\n", r"recipe\.yaml: not valid YAML"),
    ],
)
def test_bad_recipe_is_named_by_line_and_key(read, addition, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        read(MINIMAL + addition)


def test_recipe_that_is_no_mapping(read):
    with pytest.raises(RecipeError, match="expected a YAML mapping of keys to values, found list"):
        read("- a\n- b\n")


def test_missing_recipe_file():
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: cannot be read: No such file"):
        parse_recipe(GRPO, ["--config", "nowhere.yaml"])


def test_command_line_wins_and_is_recorded(read):
    script, args, _, recipe = read(
        MINIMAL + "learning_rate: 1.0e-3\n", "--learning_rate", "5e-4", "--agents", "blur_filter"
    )
    assert args.learning_rate == 5e-4
    assert script.agents == ["blur_filter"]
    assert recipe.text.startswith(MINIMAL)
    assert "--learning_rate 5e-4" in recipe.text


def test_a_warm_up_by_ratio_from_recipe_and_command_line(read):
    assert read(MINIMAL + "warmup_ratio: 0.1\n")[1].get_warmup_steps(500) == 50
    assert read(MINIMAL + "warmup_ratio: 0.1\n", "--warmup_ratio", "0.2")[1].get_warmup_steps(500) == 100
    assert read(MINIMAL + "warmup_steps: 20\n", "--warmup_steps", "0", "--warmup_ratio", "0.2")[1].warmup_steps == 0.2
    with pytest.raises(RecipeError, match=r"recipe.yaml: warmup_ratio: 0.2, and warmup_steps is 20: set one of them"):
        read(MINIMAL + "warmup_steps: 20\n", "--warmup_ratio", "0.2")


def test_unknown_key_on_the_command_line(read):
    with pytest.raises(RecipeError, match="command line: unknown key 'learnin_rate'; did you mean 'learning_rate'"):
        read(MINIMAL, "--learnin_rate", "1e-3")


def test_rewards_take_their_parameters_beside_their_name(read):
    entries = "reward_funcs:\n  - {name: combined, agent_weight: 0.7}\n  - strict_xml_format\n"
    script, *_ = read(MINIMAL.replace("reward_funcs: [strict_xml_format]\n", entries))
    assert script.reward_funcs == [{"name": "combined", "agent_weight": 0.7}, "strict_xml_format"]
    script, *_ = read(MINIMAL, "--reward_funcs", '{"name": "combined", "agent_weight": 0.7}')
    assert script.reward_funcs == [{"name": "combined", "agent_weight": 0.7}]


def test_a_gpu_recipe_can_only_be_validated_without_a_gpu(read):
    import torch

    if torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    gpu = MINIMAL.replace("use_cpu: true\nbf16: false", "bf16: true")
    with pytest.raises(RecipeError, match="bf16"):
        read(gpu)
    assert read(gpu + "validate_only: true\n")[0].validate_only
    assert read(gpu, "--validate_only", "true")[0].validate_only


# -- as commands, in one process --------------------------------------------------------------------------------------


@pytest.fixture
def grpo_main(tiny_model, report_data, tmp_path, capsys):
    """Function: changes of a good recipe -> (exit status, what was printed as an error)."""
    from trainers.grpo import main

    def run(**changes) -> tuple[int, str]:
        recipe = {
            "model_name_or_path": str(tiny_model),
            "dtype": "float32",
            "dataset_name": str(report_data),
            "max_pixels": 1024,
            "reward_funcs": ["agent_selection"],
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "validate_only": True,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        status = 0
        try:
            main(["--config", str(path)])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


def test_good_recipe_validates(grpo_main):
    assert grpo_main() == (0, "")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward_funcs": ["agent_selektion"]}, ["agent_selektion", "strict_xml_format"]),
        (
            {"reward_funcs": ["vqa_accuracy"]},
            ["reward 'vqa_accuracy' needs the column 'answers'", "ground_truth_agents"],
        ),
        ({"reward_funcs": [{"name": "combined", "agent_wait": 1}]}, ["combined", "agent_wait", "agent_weight"]),
        ({"reward_weights": [1.0, 2.0]}, ["reward_weights: expected 1 number, one for each of agent_selection"]),
        ({"agents": ["blur"]}, ["unknown agent 'blur'", "blur_filter"]),
        ({"dataset_name": "/nowhere.jsonl"}, ["/nowhere.jsonl: no such file"]),
        ({"dataset_train_split": "trian"}, ["found none of trian.jsonl, trian.json"]),
        ({"max_prompt_length": 20}, ["tokens", "expected at most 20 (max_prompt_length)", "never cut"]),
        ({"model_name_or_path": "/nowhere", "validate_only": False}, ["model_name_or_path: '/nowhere'"]),
        ({"resume_from_checkpoint": "/nowhere", "validate_only": False}, ["no checkpoint in '/nowhere'"]),
        ({"accelerate_config": "setup.cfg"}, ["accelerate_config: setup.cfg"]),
    ],
)
def test_bad_settings_end_with_one_clear_error(grpo_main, changes, expected):
    status, error = grpo_main(**changes)
    assert status == 1
    assert error.startswith("error: ")
    for part in expected:
        assert part in error


def spoil_image(folder: Path, content: bytes | None) -> str:
    """Replaces the image of the third record; returns its name."""
    import json

    row = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[2])
    image = folder / row["images"][0]
    image.unlink()
    if content is not None:
        image.write_bytes(content)
    return image.name


def png(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    encoded = io.BytesIO()
    Image.new("RGB", (width, height)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such image file"),
        (png(40, 40)[:60], "truncated"),
        (png(1, 1), "1x1"),
        (png(20_000, 8), "20000x8"),
        (b"GIF?", "image"),
    ],
    ids=["missing", "truncated", "one pixel", "20,000 pixels wide", "no image"],
)
def test_bad_images_are_named_by_line_before_anything_starts(grpo_main, report_data, tmp_path, content, expected):
    folder = tmp_path / "data"
    shutil.copytree(report_data, folder)
    name = spoil_image(folder, content)
    status, error = grpo_main(dataset_name=str(folder))
    assert status == 1
    assert f"{folder / 'train.jsonl'}:3" in error
    assert name in error
    assert expected in error


@pytest.mark.parametrize("script", ["grpo", "sft", "rce", "offline_grpo"])
def test_help_answers_without_heavy_imports(run_command, script):
    """Not a timed test: what takes seconds is importing torch, and it must not be imported."""
    code = (
        "import runpy, sys; sys.argv = ['trainers', '--help']\n"
        f"try:\n    runpy.run_path('trainers/{script}.py', run_name='__main__')\n"
        "except SystemExit as stop:\n    print(stop.code, sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    )
    done = run_command("-c", code)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "freeze_vision_tower" in done.stdout


def test_help_lists_every_key_of_the_configuration(run_command):
    done = run_command("trainers/grpo.py", "--help")
    keys = sorted({one.name for one in fields(GRPOConfig)} - {one.name for one in fields(trl.GRPOConfig)})
    assert len(keys) > 10
    assert [key for key in keys if f"  {key}: " not in done.stdout] == []


def test_help_shows_a_shared_key_once_with_the_default_of_the_script(run_command):
    shown = run_command("trainers/offline_grpo.py", "--help").stdout.splitlines()
    assert [line for line in shown if line.startswith("  adaptive_kl: ")] == ["  adaptive_kl: bool = True"]
    assert any(line.startswith("  kl_target_max: ") for line in shown)
    assert not any("ClassVar" in line for line in shown)
