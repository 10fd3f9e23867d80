"""The options of a command are the fields of a dataclass: read from a command line, checked, and listed by `--help`.

    @dataclass(kw_only=True)
    class PoolArguments:
        dataset_name: str = option("VQA records", old=("dataset",))
        pool_size: int = option("candidates of a query", 64, within=AT_LEAST_1)

An option is written as its field, `--pool_size 8`; `--pool-size 8` and `--pool_size=8` are the same. Its type is that
of the field: a number, a text, a `Path`, a `bool` (`--restart`), a `Literal`, or a tuple of one of these. What a name
was in the last version is still taken, with a line on stderr. What depends on two options is checked by the
dataclass, in `__post_init__`, with an `OptionError`.
"""

import argparse
import os
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from data.cli.help import NAME, described, entry, started_as
from data.cli.ranges import AT_LEAST_0, FINITE, Range
from data.cli.suggestions import WordError, check_given_once, check_words, closest
from data.errors import UserError

ALL = -1
"""The value of `--limit` that means every row, as the option is written when it is not wanted."""
UNNAMED = ""
"""Among the old names of an option: it was given without one."""
_TRUTH = {"true": True, "false": False}
_NUMBERS = {int: "a whole number", float: "a number"}
Arguments = TypeVar("Arguments")


class OptionError(UserError):
    """An option that cannot be, or that does not go with another one; the message names it."""


# -- the fields of a command's dataclass ------------------------------------------------------------------------------


def option(
    text: str,
    default: Any = MISSING,
    *,
    within: Range | None = None,
    choices: Sequence | None = None,
    read: Callable[[Any], Any] | None = None,
    old: Sequence[str] = (),
    positional: bool = False,
) -> Any:
    """A field that is an option.

    Args:
        text: what `--help` says of it.
        default: without one the option must be given.
        within: what numbers are allowed.
        choices: what may be given, where the type is no `Literal`.
        read: makes the value of what was given, or raises an `argparse.ArgumentTypeError` or `UserError`.
        old: what it was called in the last version; `UNNAMED` if it was given without a name.
        positional: its name may be left out.
    """
    return field(
        default=default,
        metadata={
            "help": text,
            "within": within,
            "choices": choices,
            "read": read,
            "old": tuple(old),
            "positional": positional,
        },
    )


def _read_limit(number: int) -> int | None:
    if number == ALL:
        return None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}; {ALL} means all")
    return number


def limit_option(what: str = "rows") -> Any:
    """`limit: int | None`: the number of rows to take, or `None` for all of them."""
    return option(f"only the first of the {what}, so many; {ALL}, or without it, all", None, read=_read_limit)


def seed_option(text: str, default: int = 0) -> Any:
    """`seed: int`."""
    return option(text, default, within=AT_LEAST_0)


def split_option(default: str) -> Any:
    """`split: str`, of `dataset_name`."""
    return option("split of dataset_name, if it is a folder or a data set of the Hub", default)


def skip_unreadable_option() -> Any:
    """`skip_unreadable: bool`, for commands that can leave out rows of pictures (`data/io/unreadable.py`)."""
    return option(
        "leave out rows with an image that cannot be read, and write down which, in place of an error", False
    )


def device_option() -> Any:
    """`device: str | None`."""
    return option("cpu, cuda, ..; by default an accelerator if there is one", None, read=_read_device)


def _read_device(name: str) -> str:
    if name == "cpu":
        return name
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    here = (
        [] if found is None else [found.type, *(f"{found.type}:{n}" for n in range(torch.accelerator.device_count()))]
    )
    if name not in here:
        raise argparse.ArgumentTypeError(
            f"expected one of this machine's devices, {', '.join(['cpu', *here])}, found {name!r}"
        )
    return name


def dtype_option() -> Any:
    """`dtype: str`."""
    return option("of the weights", "auto", choices=("auto", "float32", "bfloat16", "float16"))


def rows_file_option(text: str) -> Any:
    """`output: Path`: a file of rows to write, whose name tells those who read it what it is."""
    return option(text, read=_read_rows_file)


def _read_rows_file(path: Path) -> Path:
    if path.suffix != ".jsonl":
        raise argparse.ArgumentTypeError(f"expected a name that ends in .jsonl, found '{path}'")
    return path


# -- what a command line is read by -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option of a command, as its field describes it."""

    field: Field
    annotation: Any

    @property
    def name(self) -> str:
        """As it is written, without hyphens before it."""
        return self.field.name

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.field.default is MISSING

    def setting(self, key: str, otherwise: Any = None) -> Any:
        """An entry of its metadata."""
        return self.field.metadata.get(key) or otherwise

    @cached_property
    def type(self) -> Any:
        """The annotation without `None`."""
        parts = [part for part in typing.get_args(self.annotation) if part is not type(None)]
        optional = type(None) in typing.get_args(self.annotation)
        return parts[0] if optional else self.annotation

    @property
    def count(self) -> int | str | None:
        """How many values it takes: a number, "+" for one or more, `None` for one alone."""
        if typing.get_origin(self.type) is not tuple:
            return None
        parts = typing.get_args(self.type)
        return "+" if Ellipsis in parts else len(parts)

    @property
    def of_one(self) -> Any:
        """The type of one value."""
        return typing.get_args(self.type)[0] if self.count else self.type

    @property
    def choices(self) -> tuple | None:
        """All values that it may have, if they can be listed."""
        listed = typing.get_args(self.of_one) if typing.get_origin(self.of_one) is Literal else None
        return tuple(self.setting("choices", listed) or ()) or None

    @property
    def shown_type(self) -> str:
        """What `--help` says of its type: `int`, `text ..` for several, `left | right` for a choice."""
        if self.choices is not None:
            one = " | ".join(map(str, self.choices))
        else:
            one = getattr(self.of_one, "__name__", str(self.of_one)).replace("Path", "path").replace("str", "text")
        return f"{one} .." if self.count == "+" else " ".join([one] * self.count) if self.count else one

    @property
    def shown_default(self) -> str:
        """What `--help` says of its default, as it would be typed."""
        default = self.field.default
        if default is MISSING:
            return "required"
        if isinstance(default, tuple):
            return " ".join(map(str, default)) or "none"
        return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)

    def read(self, text: str) -> Any:
        """One value of what was typed.

        Raises:
            argparse.ArgumentTypeError: not of its type, out of its range, or none of its choices.
            UserError: what the option names is not there.
        """
        value = self._typed(text)
        allowed = self.setting("within", FINITE if self.of_one is float else None)
        if allowed is not None and value not in allowed:
            raise argparse.ArgumentTypeError(f"expected {allowed}, found {text}")
        if self.choices is not None and value not in self.choices:
            listed = ", ".join(map(repr, self.choices))
            hint = closest(text, map(str, self.choices))
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r}; {hint}choose from {listed}")
        read = self.setting("read")
        if read is None:
            return value
        try:
            return read(value)
        except UserError as error:
            # Of no other kind: argparse takes a ValueError for a value of another type.
            raise UserError(str(error), f"--{self.name}") from error

    def _typed(self, text: str) -> Any:
        if self.of_one in _NUMBERS:
            try:
                return self.of_one(text)
            except ValueError as error:
                raise argparse.ArgumentTypeError(f"expected {_NUMBERS[self.of_one]}, found {text!r}") from error
        if self.of_one is bool:
            if text.lower() not in _TRUTH:
                raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
            return _TRUTH[text.lower()]
        if self.of_one is Path and not text:
            raise argparse.ArgumentTypeError("expected a path, found an empty one")
        return Path(text) if self.of_one is Path else text


def options_of(kind: type) -> dict[str, Option]:
    """Name -> option, of a command's dataclass."""
    annotations = typing.get_type_hints(kind)
    return {item.name: Option(item, annotations[item.name]) for item in fields(kind)}


class _Parser(argparse.ArgumentParser):
    """Reads the options of a dataclass; what is wrong is two lines, where argparse would list every option."""

    def __init__(self, kind: type, prog: str):
        super().__init__(prog=prog, description=sys.modules[kind.__module__].__doc__, allow_abbrev=False)
        self.kind, self.options = kind, options_of(kind)
        self.old = {old: one.name for one in self.options.values() for old in one.setting("old", ())}
        for name, one in self.options.items():
            self.add_argument(f"--{name}", type=one.read, nargs=one.count, default=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n`--help` lists the options\n")

    def format_help(self) -> str:
        needed = " ".join(f"--{name} {name.upper()}" for name, one in self.options.items() if one.required)
        lines = [f"usage: {' '.join(filter(None, [self.prog, needed]))} [--OPTION VALUE ..]"]
        for title, names in self._groups():
            shown = (self.options[name] for name in names)
            lines += ["", f"{title}:", ""]
            lines += [
                entry(f"--{one.name}", one.shown_type, one.shown_default, one.setting("help", "")) for one in shown
            ]
        return described(self.description, lines)

    def _groups(self) -> Iterator[tuple[str, list[str]]]:
        """Title and names of the options, the command's own first and then those that several commands have."""
        listed: set[str] = set()
        for cls in self.kind.__mro__[:-1]:
            own = cls.__dict__.get("__annotations__", ())
            names = [name for name in own if name in self.options and name not in listed]  # once, if overridden
            listed.update(names)
            if names:
                yield (cls.__doc__.splitlines()[0].rstrip(".") if cls is not self.kind else "options"), names

    def read_names(self, argv: Sequence[str]) -> list[str]:
        """The command line with every option by its name of today, and a value for every `bool`."""
        words: list[str] = []
        written: list[tuple[str, str]] = []
        for place, word in enumerate(argv):
            typed, equals, value = word.removeprefix("--").partition("=")
            name = typed.replace("-", "_")
            if not word.startswith("--") or typed in ("", "help"):
                words.append(word)
                continue
            if name in self.old:
                _note(f"--{typed} is called --{self.old[name]} now")
                name = self.old[name]
            if name not in self.options:
                self.error(f"unknown option --{typed}; {closest(name, self.options)}".rstrip("; "))
            if self.options[name].type is bool and not equals:
                following = argv[place + 1].lower() if place + 1 < len(argv) else ""
                equals, value = ("", "") if following in _TRUTH else ("=", "true")
            written.append((name, typed))
            words.append(f"--{name}{equals}{value}")
        try:
            check_words(argv)
            check_given_once(written)
        except WordError as error:
            self.error(str(error))
        return words

    def take_positional(self, given: dict[str, Any], rest: Sequence[str]) -> None:
        """Puts what was given without a name where it belongs, or where the last version had it."""
        unnamed = [
            one for one in self.options.values() if one.setting("positional") or UNNAMED in one.setting("old", ())
        ]
        places = [one for one in unnamed if one.name not in given]
        if len(rest) != 1 or not places:
            self.error(f"expected --OPTION VALUE, found {' '.join(rest)!r}")
        place = places[0]
        if not place.setting("positional"):
            _note(f"{rest[0]} is written --{place.name} {rest[0]} now")
        try:
            given[place.name] = place.read(rest[0])
        except argparse.ArgumentTypeError as error:
            self.error(f"argument --{place.name}: {error}")


def _note(change: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"note: {change}; the old way goes with the next version\n")


def _program(kind: type) -> str:
    """How the command is started."""
    if (words := started_as())[0] == NAME:
        return " ".join(words)
    module = sys.modules[kind.__module__]
    if getattr(module, "__spec__", None):
        return f"python -m {module.__spec__.name.removesuffix('.__main__')}"
    file = getattr(module, "__file__", None)  # what is typed into an interpreter has none
    return f"python {os.path.relpath(file)}" if file else "python"


def _choose(kinds: Mapping[str, type], argv: Sequence[str]) -> str:
    """The first word of the command line, where a command does several things."""
    first, *_ = *argv, "nothing"
    if first in kinds:
        return first
    any_kind = next(iter(kinds.values()))
    prog = _program(any_kind)
    if first not in ("-h", "--help"):
        listed = ", ".join(kinds)
        sys.stderr.write(f"{prog}: error: expected one of {listed}, found {first}\n`--help` says what they do\n")
        sys.exit(2)
    lines = [f"usage: {prog} {'|'.join(kinds)} [--OPTION VALUE ..]", ""]
    lines += [f"  {name}\n      {kind.__doc__}" for name, kind in kinds.items()]
    sys.stdout.write(described(sys.modules[any_kind.__module__].__doc__, lines))
    sys.exit(0)


def parse_arguments(
    kind: type[Arguments] | Mapping[str, type[Arguments]], argv: Sequence[str] | None = None
) -> Arguments:
    """An instance of a command's dataclass, of a command line.

    Ends the program with status 0 after `--help`, and with status 2 and a message for what cannot be.

    Args:
        kind: the dataclass; where the first word of the command line says what is done, the dataclass for each.

    Raises:
        UserError: what an option names is not there.
    """
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(kind, Mapping):
        name = _choose(kind, argv)
        kind, argv = kind[name], argv[1:]
        parser = _Parser(kind, f"{_program(kind)} {name}")
    else:
        parser = _Parser(kind, _program(kind))
    found, rest = parser.parse_known_args(parser.read_names(argv))
    given = {name: tuple(value) if parser.options[name].count else value for name, value in vars(found).items()}
    if rest:
        parser.take_positional(given, rest)
    missing = [f"--{name}" for name, one in parser.options.items() if one.required and name not in given]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    try:
        return kind(**given)
    except OptionError as error:
        parser.error(str(error))
