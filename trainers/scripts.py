"""What a training script can do before its heavy imports: answer `--help` from its own source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

_HELP = ("-h", "--help")


def _help_text(call: ast.expr) -> tuple[str, str]:
    """Default and help of a field's `field(default=..., metadata={"help": ...})`."""
    if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "field"):
        return ast.unparse(call), ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    default = ast.unparse(keywords["default"]) if "default" in keywords else "required"
    if "default_factory" in keywords:
        default = ast.unparse(keywords["default_factory"]) + "()"
    help_text = ""
    if isinstance(keywords.get("metadata"), ast.Dict):
        entries = zip(keywords["metadata"].keys, keywords["metadata"].values, strict=True)
        help_text = next((ast.literal_eval(value) for key, value in entries if ast.literal_eval(key) == "help"), "")
    return default, help_text


def _is_dataclass(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(item) == "dataclass" for item in node.decorator_list)


def fields_of(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(name, type, default, help) of every field of the dataclasses in a file, read without importing it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if _is_dataclass(node):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and not ast.unparse(item.annotation).startswith("ClassVar"):
                    default, text = _help_text(item.value) if item.value is not None else ("required", "")
                    yield item.target.id, ast.unparse(item.annotation), default, text


def answer_help(script: str, *sources: str) -> None:
    """Prints usage and ends the program if the command line asks for help.

    Args:
        sources: further files beside the script whose dataclasses it reads.

    The fields of this toolkit are read from the source; those of TRL's and transformers' configurations, several
    hundred, are in their documentation.
    """
    if not any(argument in _HELP for argument in sys.argv[1:]):
        return
    path = Path(script)
    lines = [ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "", ""]
    lines += [f"usage: accelerate launch trainers/{path.name} --config RECIPE [--KEY VALUE ...]", ""]
    lines += ["Keys of this toolkit, in a recipe or on the command line, which wins:", ""]
    shown = {}  # what a script says of a field replaces what it shares with others
    for source in (path.parent / "recipes.py", *(path.parent / name for name in sources), path):
        for name, annotation, default, text in fields_of(source):
            shown[name] = f"  {name}: {annotation} = {default}\n      {text}"
    lines += shown.values()
    lines += ["", "And every key of TRL's configuration for this method, transformers.TrainingArguments and"]
    lines += ["trl.ModelConfig. A key that none of them has is an error that lists those that exist."]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(0)
