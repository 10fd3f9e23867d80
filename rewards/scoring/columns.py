"""What the columns of the data must hold for the rewards that read them: presence and types, checked in one place.

A reward names its columns and what each of them holds (`Reward.columns`, `Reward.types`). `check_columns` looks at
every row before anything expensive starts; a reward that is called by itself reads its columns through the same types.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data.io.json_text import half_character
from data.io.records import RecordError
from data.rows.answers import SEVERAL, AnswerError, annotators_answers, plain, problem_of_tags, read_answers

QUESTIONS = ("prompt", "question", "query")
"""Columns that a row's prompt is taken from where the trainer gives none, the first that it has."""


class ColumnError(RecordError):
    """A row lacks a column that a reward needs, or holds something else in it; the message names both."""


def missing_column(reward: str, wanted: Sequence[str], having: Iterable[str], where: str = "") -> ColumnError:
    """The error that says which column a reward needs, and which there are.

    Args:
        wanted: columns of which one would do.
        where: file and row, for messages.
    """
    wish = f"the column '{wanted[0]}'" if len(wanted) == 1 else f"one of the columns {', '.join(wanted)}"
    place = f"{where}: " if where else ""
    return ColumnError([f"{place}reward '{reward}' needs {wish}; the data has: {', '.join(sorted(having))}"])


class TypeProblem(ValueError):
    """Why a value cannot be read; its place is known to the caller."""


def text(value: Any) -> str:
    """A text.

    Raises:
        TypeProblem: anything else. So do the other types.
    """
    if not isinstance(value, str):
        raise TypeProblem(f"expected a text, found {value!r:.80}")
    place = half_character(value)
    if place is not None:
        raise TypeProblem(f"half of a surrogate pair at character {place}")
    return value


def answers(value: Any, read: Callable[[Any], list[str]] = read_answers) -> list[str]:
    """Right answers, in any form of `data.rows.answers`."""
    try:
        return [text(answer) for answer in read(value)]
    except AnswerError as error:
        raise TypeProblem(str(error)) from error


def annotators(value: Any) -> list[str]:
    """Answers of annotators; a text that is no list is the right answer, as if all of them had given it."""
    return answers(value, annotators_answers)


def annotators_who_compare(value: Any) -> list[str]:
    """The same, where a right completion earns something: the official rule compares each annotator with the others,
    of whom there must be some; and completions are read from <answer> tags."""
    found = _some(annotators(value), value)
    if len(found) == 1:
        raise TypeProblem(f"{SEVERAL}, found {value!r:.80}")
    problem = problem_of_tags(found)
    if problem is not None:
        raise TypeProblem(problem)
    return found


def answers_with_gaps(value: Any) -> list[str | None]:
    """The same, with nulls among them."""
    if not isinstance(value, list | tuple):
        return answers(value)
    known = iter(answers([item for item in value if item is not None]))
    return [None if item is None else next(known) for item in value]


def some_answers(value: Any) -> list[str | None]:
    """The same, of which there must be one at least."""
    return _some(answers_with_gaps(value), value)


def _some(found: list, value: Any) -> list:
    if all(answer is None for answer in found):
        raise TypeProblem(f"expected at least one answer, or null where there is none, found {value!r:.80}")
    return found


def names(value: Any) -> list[str]:
    """A list of texts; one text alone is a list of one."""
    if isinstance(value, str):
        return [text(value)]
    if not isinstance(value, list | tuple):
        raise TypeProblem(f"expected a list of texts, found {value!r:.80}")
    for number, item in enumerate(value):
        if not isinstance(item, str):
            raise TypeProblem(f"item {number}: expected a text, found {item!r:.80}")
    return list(value)


def ids(value: Any) -> list[int | str]:
    """A list of integers and texts."""
    if not isinstance(value, list | tuple):
        raise TypeProblem(f"expected a list of ids, found {value!r:.80}")
    for number, item in enumerate(value):
        if type(item) is not int and type(item) is not str:  # a bool is an int to isinstance
            raise TypeProblem(f"item {number}: expected an integer or a text, found {item!r:.80}")
    return list(value)


def one_id(value: Any) -> int | str:
    """An integer or a text."""
    if type(value) is not int and type(value) is not str:
        raise TypeProblem(f"expected an integer or a text, found {value!r:.80}")
    return value


def number(value: Any) -> float:
    """An integer or a float; what is not finite is the reward's own concern."""
    if type(value) not in (int, float, bool):
        raise TypeProblem(f"expected a number, found {value!r:.80}")
    return value


def prompt(value: Any) -> str | list[dict[str, Any]]:
    """A text, or chat messages."""
    if isinstance(value, str):
        return text(value)
    turns = value if isinstance(value, list | tuple) else None
    if turns is None or not all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns):
        raise TypeProblem(f"expected a text or chat messages, found {value!r:.80}")
    return list(turns)


ColumnType = Callable[[Any], Any]


def read_column(types: Mapping[str, ColumnType], column: str, value: Any) -> Any:
    """The value as the `score` of a reward with these `types` takes it; `None`, which means that there is none, stays.

    Raises:
        TypeProblem: it is of another type.
    """
    read = types.get(column)
    return value if value is None or read is None else read(plain(value))


def check_columns(rewards: Sequence[Any], rows: Sequence[dict], source: str) -> None:
    """Raises `ColumnError` for the first row that lacks a column, or holds something else than a reward reads in it.

    A `RecordError` names all files that cannot be read of those that the columns lead to, unless the reward's failures
    are only counted.

    Args:
        rewards: guarded ones (`rewards.registry.build_rewards`); a user's own function reads what its arguments
            without a default name, and some row must have each of them.
        rows: null is as good as missing in a column that a reward can do without. Such columns may be missing; a
            reward that has no others must find one of them in some row.
        source: for messages.
    """
    for reward in rewards:
        function = reward.function
        if not hasattr(function, "columns"):
            _check_arguments(reward, rows, source)
            continue
        columns = function.columns
        optional = getattr(function, "optional", ())
        found: set[str] = set()
        for position, row in enumerate(rows):
            for column in columns:
                _check_cell(function, reward.name, column, row, f"{source}: row {_name(row, position)}")
            found.update(column for column in columns if row.get(column) is not None)
        if columns and rows and not found and set(columns) == set(optional):
            raise missing_column(reward.name, columns, _known(rows), source)
        needed = [column for column in columns if column not in optional and column not in found]
        if rows and needed:
            column = f"the column '{needed[0]}', which is null in every row"
            raise ColumnError([f"{source}: reward '{reward.name}' needs {column}"])
    for reward in rewards:
        if reward.on_error == "raise" and hasattr(reward.function, "check_files"):
            reward.function.check_files(rows)


GIVEN = ("completions", "prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Arguments of a user's own reward that no column of the data has to bring."""


def own_arguments(function: Callable) -> tuple[str, ...]:
    """Columns that a user's own reward cannot do without: its arguments that have no default."""
    try:
        arguments = inspect.signature(function).parameters.values()
    except ValueError:  # it is written in C
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [one.name for one in arguments if one.kind in named and one.default is inspect.Parameter.empty]
    return tuple(name for name in needed if name not in GIVEN)


def _check_arguments(reward: Any, rows: Sequence[dict], source: str) -> None:
    for column in own_arguments(reward.function) if rows else ():
        if not any(column in row for row in rows):
            raise missing_column(reward.name, [column], _known(rows), source)


def _known(rows: Sequence[dict]) -> set[str]:
    """Columns in which some row has something."""
    return {name for row in rows for name, value in row.items() if value is not None}


def _name(row: dict, position: int) -> str:
    return repr(position if row.get("id") is None else row["id"])


def _check_cell(function: Any, reward: str, column: str, row: dict, where: str) -> None:
    if column not in row:
        if column not in function.optional:
            raise missing_column(reward, [column], row, where)
        return
    read = getattr(function, "data_types", {}).get(column)
    try:
        if read is None or row[column] is None:
            read_column(function.types, column, row[column])
        else:
            read(plain(row[column]))
    except TypeProblem as problem:
        raise ColumnError([f"{where}: column '{column}', which reward '{reward}' reads: {problem}"]) from problem
