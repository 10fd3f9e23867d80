"""The JSON of earlier example-selection systems: beams, and RL data in two forms; read into rows of groups, and back.

Each file is one object with an entry for each query, keyed by the query's id as a text.

    beams     {"12": {"id_list": [[shot_n, ..., shot_1, 12], ...], "score_list": [0.3, ...],    12 may be left out
                      "beams"?: [{"shots": [{"id", "score"}, ...], "final_score", "full_sequence"}, ...],
                      "shot_scores"?: [[...], ...], "few_shot_num"?}}
    RL data   {"_meta"?: {...}, "12": {"query"?: {"query_id": 12, ...}, "candidate_pool_ids"?: [ids],
                      "pointer_candidates": [{"pointer", ...}, ...]}}
        global form:  pointer = ids, pointer_pos (if given) = positions in the pool
        local form:   pointer = positions in candidate_pool_ids, pointer_global = ids
        by position:  pointer = positions alone, and `EarlierFormat.positions` says of what

A pool is taken from the file or from `EarlierFormat.pools`, and never made up from the candidates' ids: that would be
another, smaller pool than the one the candidates were chosen from. `_meta` is left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.io.field_types import Count, Finite, IdList, OneId
from data.io.json_text import decode_json, unstorable
from data.io.records import Location, Malformed, RecordError, describe_problems, read_json, read_rows
from data.reports.pool import ItemId

ConstructOrder = Literal["left", "right"]
CONSTRUCT_ORDERS = get_args(ConstructOrder)
RLForm = Literal["global", "local"]
Positions = Literal["pool", "examples"]
META = "_meta"


@dataclass(frozen=True)
class EarlierFormat:
    """What earlier files do not say themselves.

    Attributes:
        construct_order: of beams: "left" if each newly selected example was put before the earlier ones, so that an
            `id_list` starts with the last one; "right" if after them.
        integer_ids: entries that do not repeat their query's id (seed-format RL data without `query`) have integers
            as ids; by default they are texts, as JSON keys are.
        pools: by query id, where the file has none.
        positions: what stands in place of ids. "pool": pointers of RL data are positions in their query's pool;
            "examples": all ids of the file, queries' too, are positions in `example_ids`. From 0.
        example_ids: of the examples' data set, in its order.
        query_last: of beams: whether an `id_list` has the query's id last; the content of a file decides it.
    """

    construct_order: ConstructOrder = "left"
    integer_ids: bool = False
    pools: Mapping[ItemId, Sequence[ItemId]] = field(default_factory=dict)
    positions: Positions | None = None
    example_ids: Sequence[ItemId] = ()
    query_last: bool = True

    def ids(self, given: Sequence[ItemId], place: str) -> list[ItemId]:
        """What stands for ids in the file, as ids.

        Raises:
            EntryError: no position in the examples' data set, which `place` is said to be.
        """
        return (
            _at(self.example_ids, given, place, "the examples' data set") if self.positions == "examples" else [*given]
        )


@dataclass(frozen=True)
class EntryLocation(Location):
    """An entry of an earlier file; it knows how the fields of its group are called there."""

    candidates: str = "candidates"

    def name_of(self, field: str) -> str:
        if self.candidates == "id_list":
            return re.sub(r"^candidates\.(\d+)\.pointer", r"id_list.\1", field)
        if field == "pool":
            return "candidate_pool_ids"
        return re.sub("^candidates", self.candidates, field)


class EntryError(ValueError):
    """What is wrong with an entry: (field, sentence) pairs."""

    def __init__(self, *problems: tuple[str, str]):
        self.problems = problems
        super().__init__("; ".join(f"field '{name}': {text}" for name, text in problems))


def _at(ids: Sequence[ItemId], positions: Sequence[Any], place: str, what: str) -> list[ItemId]:
    """The ids at these positions.

    Raises:
        EntryError: the field `place` has something else.
    """
    for position in positions:
        if not isinstance(position, int) or not 0 <= position < len(ids):
            raise EntryError((place, f"expected positions in {what} of {len(ids)}, found {position!r}"))
    return [ids[position] for position in positions]


# -- reading ----------------------------------------------------------------------------------------------------------


def read_earlier(path: Path, how: EarlierFormat) -> Iterator[tuple[Location, Any]]:
    """Rows of groups from an earlier system's file; a list of groups is passed on as it is.

    What is wrong with an entry comes as `Malformed`, so that a reader can go on and report every problem.

    Raises:
        RecordError: not JSON, neither object nor list, or a duplicate query.
    """
    content, suspect = read_json(path, decode_json)
    if isinstance(content, list):
        check_ids_alone(path, how)
        yield from read_rows(path)
        return
    if not isinstance(content, dict):
        raise RecordError([f"{path}: expected a JSON object or list, found {type(content).__name__}"])
    content.pop(META, None)
    how = replace(how, query_last=_query_stands_last(content))
    kinds: dict[str, str] = {}
    while content:
        key = next(iter(content))
        entry = content.pop(key)
        problem = next(unstorable(entry), None) if suspect else None
        if problem is not None:
            yield EntryLocation(str(path), key, "query"), Malformed(problem)
        else:
            yield from _read_entry(path, key, entry, how, kinds)


def _query_stands_last(content: dict) -> bool:
    """Whether a list of the file's beams ends with its query's id. No query is its own example, so one is enough."""
    lists = (
        (key, entry["id_list"]) for key, entry in content.items() if isinstance(entry, dict) and "id_list" in entry
    )
    beams = ((key, ids) for key, given in lists if isinstance(given, list) for ids in given)
    return any(isinstance(ids, list) and ids and str(ids[-1]) == key for key, ids in beams)


def check_ids_alone(path: str | Path, how: EarlierFormat) -> None:
    """Raises a `RecordError` if positions are asked for of groups that are written as this toolkit's."""
    if how.positions is not None:
        expected = "expected an earlier system's beams or RL data, one JSON object; the pointers of groups are ids"
        raise RecordError([f"{path}: positions: {how.positions}: {expected}"])


def _read_entry(path: Path, key: str, entry: Any, how: EarlierFormat, kinds: dict) -> Iterator[tuple[Location, Any]]:
    location = EntryLocation(str(path), key, "query")
    known = [name for name in _READERS if isinstance(entry, dict) and name in entry]
    if len(known) != 1:
        found = f"the keys {sorted(entry)}" if isinstance(entry, dict) else repr(entry)
        expected = "expected an object with either 'pointer_candidates' (RL data) or 'id_list' (beams)"
        yield location, Malformed(f"{expected}, found {found:.200}")
        return
    name = known[0]
    location = EntryLocation(str(path), key, "query", candidates=name)
    first = kinds.setdefault(name, key) if not kinds or name in kinds else None
    if first is None:
        other, whose = next(iter(kinds.items()))
        yield location, Malformed(f"expected '{other}' as query {whose} has, found '{name}': two kinds in one file")
        return
    try:
        yield location, _READERS[name](key, entry, how)
    except EntryError as error:
        for wrong, text in error.problems:
            yield location, Malformed(f"field '{wrong}': {text}")


def _parse(model: type[BaseModel], value: Any, prefix: str = "") -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        sentences = describe_problems(error, Location("", 0))
        parts = [re.fullmatch(r":0: field '(.*?)': (.*)", sentence, re.DOTALL) for sentence in sentences]
        raise EntryError(*((prefix + part[1], part[2]) for part in parts)) from error


def _query_id(key: str, given: ItemId | None, where: str, how: EarlierFormat) -> ItemId:
    """The id of a query, with its type; `given` is how the entry repeats it, if it does."""
    if given is not None and str(given) != key:
        raise EntryError((where, f"expected {key}, the key of this entry, found {given!r}"))
    if given is None and (how.integer_ids or how.positions == "examples"):
        if not re.fullmatch(r"-?\d{1,18}", key):
            raise EntryError((where, f"expected an integer as key of this entry, found {key!r}"))
        given = int(key)
    return how.ids([key if given is None else given], where)[0]


def _further(entry: BaseModel) -> dict:
    further = entry.model_extra or {}
    for name in ("id", "pool", "candidates"):
        if name in further:
            raise EntryError((name, "a column of this name cannot be kept: groups have one of their own"))
    return further


class _Query(BaseModel):
    model_config = ConfigDict(extra="allow")

    query_id: OneId | None = None


class _RLEntry(BaseModel):
    model_config = ConfigDict(extra="allow")

    query: _Query | None = None
    candidate_pool_ids: IdList | None = None
    pointer_candidates: list[dict[str, Any]] = Field(min_length=1)


class _GlobalPointer(BaseModel):
    pointer: IdList
    pointer_pos: list[Count] | None = None


class _LocalPointer(BaseModel):
    pointer: list[Count]
    pointer_global: IdList


def _rl_row(key: str, entry: dict, how: EarlierFormat) -> dict:
    parsed = _parse(_RLEntry, entry)
    query_id = _query_id(key, parsed.query and parsed.query.query_id, "query.query_id", how)
    pool = parsed.candidate_pool_ids and how.ids(parsed.candidate_pool_ids, "candidate_pool_ids")
    if query_id in how.pools:
        if pool is not None and list(pool) != list(how.pools[query_id]):
            raise EntryError(("candidate_pool_ids", "differs from the pool that was given for this query"))
        pool = list(how.pools[query_id])
    local = any("pointer_global" in candidate for candidate in parsed.pointer_candidates)
    if (local and parsed.candidate_pool_ids is None) or (how.positions == "pool" and pool is None):
        raise EntryError(("candidate_pool_ids", "missing, and pointers are positions in it"))
    row: dict[str, Any] = {"id": query_id}
    if entry.get("query") is not None:
        row["query"] = entry["query"] | ({"query_id": query_id} if how.positions == "examples" else {})
    if pool is not None:
        row["pool"] = pool
    row |= _further(parsed)
    row["candidates"] = [
        _rl_candidate(candidate, f"pointer_candidates.{number}.", local, pool, how)
        for number, candidate in enumerate(parsed.pointer_candidates)
    ]
    return row


def _rl_candidate(candidate: dict, place: str, local: bool, pool: list[ItemId] | None, how: EarlierFormat) -> dict:
    pointer = _parse(_LocalPointer if local else _GlobalPointer, candidate, place)
    if how.positions == "pool" and not local:
        ids = _at(pool, pointer.pointer, f"{place}pointer", "a pool")
    else:
        ids = how.ids(pointer.pointer_global if local else pointer.pointer, f"{place}pointer")
    positions = pointer.pointer if local else pointer.pointer_pos
    field_name = place + ("pointer" if local else "pointer_pos")
    if positions is not None and len(positions) != len(ids):
        raise EntryError((field_name, f"expected {len(ids)} positions, one for each id, found {len(positions)}"))
    if positions is not None and pool is not None:
        for position, item in zip(positions, ids, strict=True):
            if position >= len(pool):
                raise EntryError((field_name, f"expected positions in a pool of {len(pool)}, found {position}"))
            if pool[position] != item:
                found = f"position {position} of the pool is {pool[position]!r}, and not {item!r} as the ids say"
                raise EntryError((field_name, found))
    dropped = {"pointer", "pointer_global"} if pool is None else {"pointer", "pointer_global", "pointer_pos"}
    return {"pointer": ids} | {name: value for name, value in candidate.items() if name not in dropped}


class _Shot(BaseModel):
    id: OneId
    score: Finite


class _Beam(BaseModel):
    shots: list[_Shot]
    final_score: Finite | None = None
    full_sequence: list[Any] | None = None


class _BeamEntry(BaseModel):
    model_config = ConfigDict(extra="allow")

    id_list: list[IdList] = Field(min_length=1)
    score_list: list[Finite]
    beams: list[_Beam] | None = None
    shot_scores: list[list[Finite]] | None = None
    few_shot_num: Count | None = None


def _beam_row(key: str, entry: dict, how: EarlierFormat) -> dict:
    parsed = _parse(_BeamEntry, entry)
    number = len(parsed.id_list)
    for name in ("score_list", "beams", "shot_scores"):
        values = getattr(parsed, name)
        if values is not None and len(values) != number:
            raise EntryError((name, f"expected {number} entries, one for each of id_list, found {len(values)}"))
    if how.positions == "pool":
        raise EntryError(("id_list", "expected pointers of RL data, for positions: pool, found beams"))
    query_id, shown = _query_and_shown(key, parsed, how)
    row: dict[str, Any] = {"id": query_id}
    if query_id in how.pools:
        row["pool"] = list(how.pools[query_id])
    if parsed.few_shot_num is not None:
        row["few_shot_num"] = parsed.few_shot_num
    candidates = [_beam_candidate(parsed, beam, shown[beam], how) for beam in range(number)]
    return row | _further(parsed) | {"candidates": candidates}


def _query_and_shown(key: str, entry: _BeamEntry, how: EarlierFormat) -> tuple[ItemId, list[list[ItemId]]]:
    """The query's id, and the examples of each beam as they are shown; `id_list` has the query's id last, or not."""
    if not how.query_last and not _longer_than_steps(entry):
        query_id = _query_id(key, None, "id_list", how)
        return query_id, [how.ids(ids, f"id_list.{beam}") for beam, ids in enumerate(entry.id_list)]
    query_ids = [_query_id(key, ids[-1], f"id_list.{beam}", how) for beam, ids in enumerate(entry.id_list)]
    if any(type(ids[-1]) is not type(entry.id_list[0][-1]) for ids in entry.id_list):
        raise EntryError(("id_list", "expected the query's id last, of one type, found integers and texts"))
    for beam, ids in enumerate(entry.id_list):
        if len(ids) == 1:
            raise EntryError((f"id_list.{beam}", "expected at least one example before the query, found none"))
    return query_ids[0], [how.ids(ids[:-1], f"id_list.{beam}") for beam, ids in enumerate(entry.id_list)]


def _longer_than_steps(entry: _BeamEntry) -> bool:
    """Whether lists are longer than beams have steps: they end with a query's id, which is not that of the key."""
    steps = [*(entry.shot_scores or ()), *(beam.shots for beam in entry.beams or ())]
    longest = max(map(len, steps), default=entry.few_shot_num)
    return longest is not None and max(map(len, entry.id_list)) > longest


def _beam_candidate(entry: _BeamEntry, beam: int, shown: list[ItemId], how: EarlierFormat) -> dict:
    pointer = shown[::-1] if how.construct_order == "left" else shown
    candidate: dict[str, Any] = {"pointer": pointer, "gen_method": "beam", "beam_rank": beam}
    candidate["beam_score"] = entry.score_list[beam]
    steps = None if entry.shot_scores is None else entry.shot_scores[beam]
    if entry.beams is not None:
        detail, place = entry.beams[beam], f"beams.{beam}"
        selected = how.ids([shot.id for shot in detail.shots], f"{place}.shots")
        if selected != pointer:
            text = f"expected {pointer} (id_list under construct_order {how.construct_order}), found {selected}"
            raise EntryError((f"{place}.shots", text))
        if detail.full_sequence not in (None, entry.id_list[beam]):
            text = f"expected {entry.id_list[beam]}, as in id_list, found {detail.full_sequence!r:.80}"
            raise EntryError((f"{place}.full_sequence", text))
        if steps is not None and steps != [shot.score for shot in detail.shots]:
            raise EntryError((f"shot_scores.{beam}", "differs from the scores of the same beam's shots"))
        steps = [shot.score for shot in detail.shots]
        if detail.final_score not in (None, entry.score_list[beam]):
            candidate["final_score"] = detail.final_score
    if steps is not None:
        if len(steps) != len(pointer):
            raise EntryError((f"shot_scores.{beam}", f"expected {len(pointer)} scores, found {len(steps)}"))
        candidate["step_scores"] = steps
    return candidate


_READERS = {"pointer_candidates": _rl_row, "id_list": _beam_row}


# -- writing ----------------------------------------------------------------------------------------------------------


def _only_pointers(row: dict) -> None:
    for number, candidate in enumerate(row["candidates"]):
        if candidate.get("pointer") is None:
            raise EntryError((f"candidates.{number}.pointer", "missing; this format has no place for completions"))


def rl_entry(row: dict, form: RLForm) -> dict:
    """The entry of RL data for a group's row.

    Args:
        form: "local" needs a pool; "global" adds `pointer_pos` where there is one.

    Raises:
        EntryError: completions, or no pool for the local form.
    """
    _only_pointers(row)
    pool = row.get("pool")
    if form == "local" and pool is None:
        raise EntryError(("pool", "missing; the local form gives positions in it"))
    entry: dict[str, Any] = {}
    if (query := _rl_query(row)) is not None:
        entry["query"] = query
    if pool is not None:
        entry["candidate_pool_ids"] = pool
    kept = {"id", "pool", "candidates", "query"}
    entry |= {name: value for name, value in row.items() if name not in kept}
    entry["pointer_candidates"] = [_as_rl_candidate(candidate, form, pool) for candidate in row["candidates"]]
    return entry


def _rl_query(row: dict) -> dict | None:
    """As it was read, or made from the row's columns; an integer id stands in it, so that it keeps its type."""
    if isinstance(query := row.get("query"), dict):
        return {"query_id": row["id"], **query} if isinstance(row["id"], int) else query
    columns = {"question": row.get("question"), "gt_answers_raw": row.get("answers")}
    columns = {name: value for name, value in columns.items() if value is not None}
    return {"query_id": row["id"], **columns} if columns or isinstance(row["id"], int) else None


def _as_rl_candidate(candidate: dict, form: RLForm, pool: list[ItemId] | None) -> dict:
    ids = candidate["pointer"]
    rest = {name: value for name, value in candidate.items() if name != "pointer"}
    if pool is None:
        return {"pointer": ids, **rest}
    positions = [pool.index(item) for item in ids]
    rest.pop("pointer_pos", None)
    if form == "local":
        return {"pointer": positions, "pointer_global": ids, **rest}
    return {"pointer": ids, "pointer_pos": positions, **rest}


def beam_entry(row: dict, order: ConstructOrder) -> dict:
    """The entry of beam data for a group's row; pools and what else is known of candidates have no place there.

    Raises:
        EntryError: completions, a candidate without `beam_score`, or an example that has the query's id.
    """
    _only_pointers(row)
    candidates = row["candidates"]
    for number, candidate in enumerate(candidates):
        if candidate.get("beam_score") is None:
            raise EntryError((f"candidates.{number}.beam_score", "missing; beams have one each"))
        if row["id"] in candidate["pointer"]:
            text = f"{row['id']!r} is the query's id too, and beams have both in one list"
            raise EntryError((f"candidates.{number}.pointer", text))
    pointers = [candidate["pointer"] for candidate in candidates]
    shown = [pointer[::-1] if order == "left" else pointer for pointer in pointers]
    sequences = [[*ids, row["id"]] for ids in shown]
    entry: dict[str, Any] = {"id_list": sequences, "score_list": [candidate["beam_score"] for candidate in candidates]}
    if all(candidate.get("step_scores") is not None for candidate in candidates):
        entry["beams"] = [_as_beam(*pair) for pair in zip(candidates, sequences, strict=True)]
        entry["shot_scores"] = [candidate["step_scores"] for candidate in candidates]
        entry["few_shot_num"] = max(map(len, pointers))
    if row.get("few_shot_num") is not None:
        entry["few_shot_num"] = row["few_shot_num"]
    return entry


def _as_beam(candidate: dict, sequence: list[ItemId]) -> dict:
    steps = zip(candidate["pointer"], candidate["step_scores"], strict=True)
    return {
        "shots": [{"id": item, "score": score} for item, score in steps],
        "final_score": candidate.get("final_score", candidate["beam_score"]),
        "full_sequence": sequence,
    }


def entries_by_key(rows: Iterable[dict], convert) -> Iterator[tuple[str, dict]]:
    """(key, entry) of every row.

    Args:
        convert: row -> entry.

    Raises:
        RecordError: names the group that cannot be converted, or two ids that are the same text (1 and "1").
    """
    seen: set[str] = set()
    for row in rows:
        key = str(row["id"])
        if key in seen or key == META:
            raise RecordError(
                [f"group {row['id']!r}: field 'id': its text {key!r} is taken by another group or _meta"]
            )
        seen.add(key)
        try:
            yield key, convert(row)
        except EntryError as error:
            raise RecordError(
                [f"group {row['id']!r}: field '{name}': {text}" for name, text in error.problems]
            ) from error
