"""Options of every command: typed fields of a dataclass, each documented, with one name and type for one thing."""

import ast
import importlib
import re

import pytest
from places import ROOT
from programs import programs

from data.cli.arguments import Option, options_of

SHARED = {"config": "Path", "dataset_name": "str", "output_dir": "Path", "output": "Path", "limit": "int"}
"""Names that mean the same in every command that has them."""


PROGRAMS = programs()


def commands() -> dict[str, type]:
    """Module, with the word that says what it does if there is one -> the dataclass of its options."""
    found = {}
    for name, main in PROGRAMS.items():
        calls = [node for node in ast.walk(main) if isinstance(node, ast.Call) and _called(node) == "parse_and_hold"]
        for call in calls:
            kind = getattr(importlib.import_module(name), ast.unparse(call.args[0]))
            for word, one in kind.items() if isinstance(kind, dict) else [("", kind)]:
                found[f"{name} {word}".strip()] = one
    return found


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", "")


COMMANDS = commands()
every_command = pytest.mark.parametrize("command", COMMANDS)


def run(command: str, *words: str, capsys) -> tuple[object, str, str]:
    """Exit status, output and error output of a command that ends before it has done anything."""
    module, *word = command.split()
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main([*word, *words])
    return stop.value.code, *capsys.readouterr()


def test_all_commands_are_there():
    assert len(COMMANDS) >= 28
    trainers = {f"trainers.{name}" for name in ("grpo", "sft", "rce", "offline_grpo", "reward", "factors")}
    others = {name.split()[0] for name in COMMANDS}
    assert set(PROGRAMS) - others == trainers | {"vlm_posttrain.__main__", "vlm_posttrain.accelerate_process"}


@every_command
def test_help_says_what_each_option_is_and_once(command, capsys):
    status, shown, _ = run(command, "--help", capsys=capsys)
    assert status == 0
    assert sorted(re.findall(r"^  --(\w+): ", shown, re.MULTILINE)) == sorted(options_of(COMMANDS[command]))
    for name, one in options_of(COMMANDS[command]).items():
        assert len(one.setting("help", "")) > 3, name


def test_no_command_imports_what_takes_long_before_it_has_read_its_options(run_command):
    """Not a timed test: `--help` takes half a second at most as long as none of these is imported."""
    modules = sorted({command.split()[0] for command in COMMANDS})
    code = f"import importlib, sys; [importlib.import_module(name) for name in {modules}]; print(*sys.modules)"
    imported = set(run_command("-c", code).stdout.split())
    assert set(modules) <= imported
    assert (
        imported & {"torch", "transformers", "trl", "datasets", "scipy", "sklearn", "skimage", "matplotlib"} == set()
    )


@every_command
def test_a_misspelt_option_is_a_short_error_that_names_the_closest(command, capsys):
    name = max(options_of(COMMANDS[command]), key=len, default=None)
    if name is None:
        return  # vlm-posttrain env
    status, _, shown = run(command, f"--{name[:-2]}{name[-1]}", "x", capsys=capsys)
    assert status == 2
    assert f"unknown option --{name[:-2]}{name[-1]}; did you mean '" in shown
    assert f"'{name}'" in shown
    assert shown.count("\n") < 6


def test_a_command_that_does_several_things_lists_them(capsys):
    main = importlib.import_module("rollouts.factor_routing").main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert re.findall(r"^  (\w+)$", capsys.readouterr().out, re.MULTILINE) == ["suggest", "run"]
    for words, found in (([], "nothing"), (["rum"], "rum")):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert f"error: expected one of suggest, run, found {found}\n" in capsys.readouterr().err


def test_one_name_has_one_type_in_all_commands():
    kinds: dict[str, dict[str, list[str]]] = {}
    for command, kind in COMMANDS.items():
        for name, one in options_of(kind).items():
            kinds.setdefault(name, {}).setdefault(_type_name(one), []).append(command)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    assert {name: set(kinds[name]) for name in SHARED} == {name: {kind} for name, kind in SHARED.items()}


def _type_name(one: Option) -> str:
    """Of one value: a command may take several where another takes one. What can be chosen may differ."""
    return "str" if one.choices else one.of_one.__name__


@pytest.mark.parametrize(
    "package", ["data", "models", "rewards", "filter_agents", "rollouts", "trainers", "vlm_posttrain", "benchmarks"]
)
def test_no_function_takes_a_namespace(package):
    """`argparse` is the business of `data/cli/arguments.py` alone."""
    found = []
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if "argparse" in names:
            found.append(path.relative_to(ROOT).as_posix())
    assert found == (["data/cli/arguments.py"] if package == "data" else [])
