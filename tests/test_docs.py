"""The documentation is true: its Python runs, its recipes parse, its commands and links exist.

Python blocks of a page share one namespace and run in a folder that has `outputs/` as the quick start leaves it. A
block that starts with `# name.py` or `# name.yaml` is also stored under that name, for recipes and commands.
"""

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import re
import runpy
import shlex
import sys
import types
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from places import ROOT

import data.cli.arguments
import data.cli.locks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("data", "filter_agents", "models", "rewards", "rollouts", "trainers", "vlm_posttrain", "benchmarks")
FOLDERS = (*PACKAGES, "accelerate_configs", "docs", "recipes", "tests")
ELSEWHERE = {"cd", "git", "hf", "pip", "uv", ".", "export"}
"""Commands that are not this project's."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
NAMED_PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*(?:\.\w+|[*/])|[\w-]+\.(?:md|sh|toml|cfg))`")
FILE_NAME = re.compile(r"# (\w+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is where its content starts."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 2
            found.append(Block(page, line, match[1], match[2]))
    return [block for block in found if block.language in languages]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_blocks_are_of_a_language_that_is_checked():
    """A block without a language, or with a misspelt one, would not be."""
    checked = {"python", "yaml", "bash", "json", "text", "bibtex"}
    found = {block.name: block.language for page in PAGES for block in blocks_of(page)}
    assert {name: language for name, language in found.items() if language not in checked} == {}


def blocks_of(page: Path) -> list[Block]:
    languages = {match[1] for match in FENCE.finditer(page.read_text(encoding="utf-8"))}
    return [block for block in blocks(*languages) if block.page == page]


# -- python and json --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def quick_start(tmp_path_factory, tiny_model, report_data) -> Path:
    """A folder with `outputs/` as the quick start, a report on images as they are, and an adapter run leave it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from data.quality_reports import main

    outputs = tmp_path_factory.mktemp("docs") / "outputs"
    outputs.mkdir()
    for name, target in (("tiny", tiny_model), ("sft", tiny_model), ("grpo", tiny_model), ("data", report_data)):
        (outputs / name).symlink_to(target)
    pool = next((report_data / "pools").iterdir())
    main(["--source", str(pool / "images"), "--output_dir", str(outputs / "report"), "--no_damage", "--workers", "1"])
    base = AutoModelForImageTextToText.from_pretrained(str(tiny_model), dtype=torch.float32)
    adapters = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapters.save_pretrained(str(outputs / "agent_selection_sft_qlora"))
    AutoProcessor.from_pretrained(str(tiny_model)).save_pretrained(str(outputs / "agent_selection_sft_qlora"))
    return outputs


@pytest.fixture
def workplace(quick_start, tmp_path, monkeypatch) -> Path:
    """A current folder like a repository after the quick start; what is written below `outputs/` stays in it."""
    (tmp_path / "outputs").mkdir()
    for entry in quick_start.iterdir():
        (tmp_path / "outputs" / entry.name).symlink_to(entry)
    (tmp_path / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def store_named_blocks(page: Path, folder: Path) -> None:
    for block in blocks_of(page):
        if named := FILE_NAME.match(block.text):
            (folder / named[1]).write_text(block.text, encoding="utf-8")


PAGES_WITH_PYTHON = sorted({block.page for block in blocks("python")})


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=page_name)
def test_python_runs(page, workplace, monkeypatch):
    store_named_blocks(page, workplace)
    module = types.ModuleType(f"blocks_of_{page.stem.lower()}")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks_of(page):
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, vars(module))


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.name)
def test_json_records_are_valid(block, tmp_path):
    """Agent selection: a record or a list of raw reports. VQA, preferences and factors: a record."""
    from data import agent_selection, vqa
    from data.factors import FactorAnnotation
    from data.io.records import Location
    from data.preferences import PreferenceRecord

    content = json.loads(block.text)
    rows = content if isinstance(content, list) else [content]
    if "filter_factor_texts" in rows[0]:
        assert [FactorAnnotation.model_validate(row) for row in rows]
        return
    if "response" in rows[0]:
        assert [PreferenceRecord.model_validate(row) for row in rows]
        return
    task = vqa if "question" in rows[0] else agent_selection
    located = [(Location(block.name, number), row) for number, row in enumerate(rows, start=1)]
    assert task.parse_records(located, tmp_path, check_files=False)


# -- recipes ----------------------------------------------------------------------------------------------------------


def recipe_types(method: str) -> tuple[type, ...]:
    from trl import ModelConfig

    from trainers.factors import FactorTrainingConfig
    from trainers.groups.arguments import GroupArguments
    from trainers.grpo import GRPOConfig, GRPOScriptArguments
    from trainers.labels.data import FactorArguments
    from trainers.offline_grpo import OfflineGRPOConfig
    from trainers.preferences.data import PreferenceArguments
    from trainers.rce import RCEConfig
    from trainers.reward import RewardConfig
    from trainers.setup.recipes import DataArguments
    from trainers.sft import SelectorSFTConfig, SFTConfig

    first = {
        "grpo": (GRPOScriptArguments, GRPOConfig),
        "sft": (DataArguments, SFTConfig),
        "selector_sft": (GroupArguments, SelectorSFTConfig),
        "rce": (GroupArguments, RCEConfig),
        "offline_grpo": (GroupArguments, OfflineGRPOConfig),
        "reward": (PreferenceArguments, RewardConfig),
        "factors": (FactorArguments, FactorTrainingConfig),
    }
    return (*first[method], ModelConfig)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_recipes_parse(block, workplace):
    from filter_agents.registry import build_agents
    from rewards.registry import build_rewards
    from trainers.setup.recipe_keys import keys_of_classes
    from trainers.setup.recipes import check_recipe

    for page in PAGES:
        store_named_blocks(page, workplace)
    check_recipe(Path(block.name), block.text, keys_of_classes(tuple(recipe_types("grpo"))))
    recipe = yaml.safe_load(block.text)
    build_agents(recipe.get("agents"))
    rewards = build_rewards(recipe.get("reward_funcs", []))
    assert len(recipe.get("reward_weights", rewards)) == len(rewards)


def test_line_by_line_table_is_the_recipe():
    """Every key of the recipe that docs/recipes.md explains has a row, in the same order, with its value."""
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = text.partition("## A recipe, line by line")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, re.MULTILINE)
    recipe = yaml.safe_load((ROOT / "recipes" / "agent_selection.yaml").read_text(encoding="utf-8"))
    assert [key for key, _ in rows] == list(recipe)
    quoted = {key: yaml.safe_load(value.strip("`")) for key, value in rows if value.startswith("`")}
    assert quoted == {key: recipe[key] for key in quoted}


# -- options of earlier systems ---------------------------------------------------------------------------------------

EARLIER_SYSTEMS = ROOT / "docs" / "earlier_systems.md"


def earlier_options() -> list[tuple[str, str, str]]:
    """(option, here, note) of every row but those that name a program."""
    rows = re.findall(r"^\| (.+?) \| (.*?) \| ?(.*?) ?\|$", EARLIER_SYSTEMS.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in rows if row[1] and row[0] != "option" and not row[0].startswith("-")]


@cache
def names_of(owner: str) -> frozenset[str]:
    """The keys of a training script, the parameters of a reward, the fields of a selector, the options of a module."""
    from models.selectors.pointer import PointerSelectorConfig
    from rewards.registry import REWARDS, import_reward, reward_parameters
    from trainers.setup.recipe_keys import keys_of_classes

    if owner == "selector":
        return frozenset(inspect.signature(PointerSelectorConfig).parameters)
    if owner in REWARDS:
        return frozenset(reward_parameters(import_reward(owner)))
    if owner.startswith("trainers/"):
        return frozenset(keys_of_classes(tuple(recipe_types(Path(owner).stem))))
    shown = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(shown):
        importlib.import_module(owner).main(["--help"])
    return frozenset(word.replace("-", "_") for word in re.findall(r"(?<!\S)--([\w-]+)", shown.getvalue()))


@pytest.mark.parametrize(("option", "here", "note"), earlier_options(), ids=lambda text: text[:40])
def test_what_replaces_an_earlier_option_exists(option, here, note):
    if here == "none":
        assert note, f"{option}: say what takes its place"
        return
    owner, keys = re.fullmatch(r"`([^`]+)`: ((?:`[^`]+`(?:, )?)+)", here).groups()
    missing = {key.removeprefix("--") for key in re.findall("`([^`]+)`", keys)} - names_of(owner)
    assert not missing, f"{option}: {owner} has no {missing}"


# -- commands ---------------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """(place, words) of every command in the blocks; comments and variables before it are left out."""
    found = []
    for block in blocks("bash", "console"):
        joined = block.text.replace("\\\n", " ")
        for line in joined.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                found.append((block.name, words))
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        comments = re.findall(r"^#   (vlm-posttrain .*)$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
        found += [(recipe.name, shlex.split(text)) for text in comments if "--launch" not in text]
    inline = re.compile(r"`((?:python|make|accelerate launch|vlm-posttrain) [^`]+)`")
    for page in PAGES:
        found += [(page_name(page), shlex.split(text)) for text in inline.findall(prose(page)) if "..." not in text]
    return found


class Parsed(Exception):
    """Stops a program after it has understood its arguments."""


@pytest.fixture
def only_parse(monkeypatch):
    """Function: a program that parses its arguments, and the arguments -> whether the program takes them."""
    parse = data.cli.arguments.parse_arguments

    def parse_and_stop(kind, argv=None):
        parse(kind, argv)
        raise Parsed

    def refuse(change: str) -> None:
        pytest.fail(f"an option of the last version: {change}")

    def run(program, arguments: list[str]) -> bool:
        with monkeypatch.context() as patch:
            for module in ("arguments", "locks"):
                patch.setattr(f"data.cli.{module}.parse_arguments", parse_and_stop)
            patch.setattr("data.cli.arguments._note", refuse)
            patch.setattr(sys, "argv", ["program", *arguments])
            patch.setattr(
                "models.model_paths.check_model_place", lambda name, of_a_run: None
            )  # made by earlier commands
            try:
                program()
            except Parsed:
                return True
            except SystemExit as end:
                return end.code in (0, None)  # --help
        return False

    return run


def check_make(arguments: list[str]) -> None:
    """Targets, and variables that may be given."""
    known = re.findall(r"^([a-z-]+):|^([A-Z]+) \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {argument.partition("=")[0] for argument in arguments} <= {target or name for target, name in known}


def check_training(arguments: list[str]) -> None:
    """A script of trainers/ and its arguments, parsed as the script does, on a machine without GPUs too."""
    from data.cli.package_files import RECIPES, shipped_file
    from trainers.setup.recipes import parse_recipe

    script, *rest = arguments
    assert (ROOT / script).is_file(), f"no such script: {script}"
    assert script in [f"trainers/{name}.py" for name in ("grpo", "sft", "rce", "offline_grpo", "reward", "factors")]
    if rest == ["--help"]:
        return
    named = dict(zip(rest, rest[1:], strict=False))
    assert shipped_file(named["--config"], RECIPES).is_file() or named["--config"] == "recipes/mine.yaml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_selector = any(part in named["--config"] for part in ("selector_sft", "selector_v2_lora"))
        method = "selector_sft" if of_selector else Path(script).stem
        parse_recipe(recipe_types(method), rest if "--validate_only" in rest else [*rest, "--validate_only", "true"])


def check_module(module: str, arguments: list[str], only_parse) -> None:
    """A program that is run by its module's name, and its arguments, if any are given."""
    found = importlib.util.find_spec(module)
    assert found is not None, f"no such module: {module}"
    module += ".__main__" * (found.submodule_search_locations is not None and module.startswith(PACKAGES))
    if module.startswith(PACKAGES) and arguments:
        hyphened = [word for word in arguments if re.match(r"--\w+-", word)]
        assert not hyphened, "options are written with underscores, as in recipes"
        assert only_parse(importlib.import_module(module).main, arguments), f"{module} refuses {arguments}"


def check_one_command(arguments: list[str], only_parse) -> None:
    """`vlm-posttrain` and its arguments."""
    from vlm_posttrain.commands import COMMANDS, TRAINERS
    from vlm_posttrain.launch import split_launch

    name, *rest = arguments
    if name in TRAINERS:
        check_training([f"{TRAINERS[name].replace('.', '/')}.py", *split_launch(rest)[1]])
    elif name != "--help":
        check_module(COMMANDS[name], rest, only_parse)


@pytest.fixture(scope="module")
def folder_of_commands(tmp_path_factory) -> Path:
    """What the repository's root has, and the files that pages tell to write."""
    folder = tmp_path_factory.mktemp("commands")
    for entry in ROOT.iterdir():
        (folder / entry.name).symlink_to(entry)
    for page in PAGES:
        store_named_blocks(page, folder)
    return folder


@pytest.mark.parametrize(("place", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_exist(place, words, only_parse, folder_of_commands, monkeypatch):
    monkeypatch.chdir(folder_of_commands)
    program, *arguments = words
    if program == "make":
        check_make(arguments)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launched = launch_command_parser().parse_args(arguments[1:])
        assert arguments[0] == "launch"
        assert launched.config_file is None or Path(launched.config_file).is_file()
        if launched.module:
            check_module(launched.training_script, launched.training_script_args, only_parse)
            return
        check_training([launched.training_script, *launched.training_script_args])
    elif program == "vlm-posttrain":
        check_one_command(arguments, only_parse)
    elif program == "python" and arguments[0] == "-m":
        module, *rest = arguments[1:]
        check_module(module, rest, only_parse)
        if module == "pytest":
            assert [path for path in rest if path.startswith("tests/") and not Path(path).exists()] == []
    elif program == "python" and arguments[0].startswith("trainers/"):
        check_training(arguments)
    elif words == ["python", "make_task.py"]:
        assert Path("make_task.py").is_file()  # takes no arguments; test_own_task.py runs it
    elif program == "python":
        assert only_parse(lambda: runpy.run_path(arguments[0], run_name="__main__"), arguments[1:])
    else:
        assert program in ELSEWHERE or Path(program).is_file(), f"no such program: {program}"


# -- links and examples -----------------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """The address that GitHub gives a heading."""
    kept = "".join(letter for letter in heading.strip().lower() if letter.isalnum() or letter in " -_")
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, fragment = link.partition("#")
        target = page if not path else (page.parent / path)
        exists = target.is_file()
        if exists and fragment:
            exists = fragment in {anchor(heading) for heading in HEADING.findall(prose(target))}
        broken += [] if exists else [link]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_in_the_text_exist(page):
    """Paths below this repository's folders, also with `*`; `rollouts/` and others that are to come are not listed."""
    coming = {"recipes/mine.yaml"}
    named = set(NAMED_PATH.findall(prose(page))) - coming
    assert [path for path in sorted(named) if not list(ROOT.glob(path)) and not (page.parent / path).exists()] == []


def test_every_page_can_be_found_from_the_readme():
    linked = {link.partition("#")[0] for link in LINK.findall(prose(ROOT / "README.md"))}
    assert {page_name(page) for page in PAGES} - {"README.md"} <= linked


def modules_with_examples() -> list[str]:
    files = sorted(path for package in PACKAGES[:-1] for path in (ROOT / package).rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files
        if ">>> " in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert (failed, tried > 0) == (0, True)
