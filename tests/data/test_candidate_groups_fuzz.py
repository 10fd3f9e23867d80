"""100 seeded mutations of valid files, in each of the five forms that are read: each gets its own clear error.

The error names the file, the line (or the query, where a file is one JSON object), the field, and what was found
there; and it is the only one.
"""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from data.candidate_groups import load_groups, main
from data.io.records import RecordError

MUTATIONS = 100
EXAMPLES = set(range(100, 200))
NAN, INFINITY = float("nan"), float("inf")
FIELDS = {"global": "pointer_candidates", "local": "pointer_candidates", "beams": "id_list"}


# -- valid files ------------------------------------------------------------------------------------------------------


def numbers(rng: random.Random) -> dict:
    return {
        "gen_method": rng.choice(["beam", "sample", "random"]),
        "beam_rank": rng.randint(0, 4),
        "beam_score": rng.gauss(0, 1),
        "logprob_score": -rng.random(),
        "temperature": rng.choice([None, 1.0, 1.3]),
        "vqa_pred_answer": "a book",
        "vqa_correct": rng.randint(0, 1),
        "vqa_acc_score": rng.random(),
    }


def pointer_groups(rng: random.Random) -> list[dict]:
    rows = []
    for query in range(10, 16):
        pool = rng.sample(sorted(EXAMPLES), 8)
        candidates = [{"pointer": rng.sample(pool, rng.randint(1, 3)), **numbers(rng)} for _ in range(4)]
        rows.append({"id": query, "pool": pool, "candidates": candidates})
    return rows


def completion_groups(rng: random.Random) -> list[dict]:
    completions = [{"completion": "a book", "reward": rng.random(), "scores": {"a": 0.5}} for _ in range(4)]
    return [{"id": f"q{query}", "answers": ["a book"], "candidates": copy.deepcopy(completions)} for query in range(6)]


def rl_data(rng: random.Random, local: bool) -> dict:
    content = {}
    for row in pointer_groups(rng):
        candidates = []
        for candidate in row["candidates"]:
            ids = candidate.pop("pointer")
            positions = [row["pool"].index(item) for item in ids]
            named = {"pointer": positions, "pointer_global": ids} if local else {"pointer": ids}
            candidates.append(named | ({} if local else {"pointer_pos": positions}) | candidate)
        entry = {"query": {"query_id": row["id"]}, "candidate_pool_ids": row["pool"]}
        content[str(row["id"])] = {**entry, "pointer_candidates": candidates}
    return content


def beams(rng: random.Random) -> dict:
    content = {}
    for query in range(10, 16):
        shown = [[*rng.sample(sorted(EXAMPLES), 2), query] for _ in range(3)]
        scores = [[rng.random(), rng.random()] for _ in shown]
        last = [steps[-1] for steps in scores]
        content[str(query)] = {"id_list": shown, "score_list": last, "shot_scores": scores, "few_shot_num": 2}
    return content


FORMS: dict[str, Callable[[random.Random], list | dict]] = {
    "pointers": pointer_groups,
    "completions": completion_groups,
    "global": lambda rng: rl_data(rng, local=False),
    "local": lambda rng: rl_data(rng, local=True),
    "beams": beams,
}


def as_bytes(content: list | dict) -> bytes:
    if isinstance(content, list):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    return (
        "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in content.items()) + "\n}"
    ).encode()


# -- mutations --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A file to be made wrong; `row` is the group or entry chosen, `candidate` its number of one candidate."""

    form: str
    content: list | dict
    key: int | str
    candidate: int
    rng: random.Random

    @property
    def row(self) -> dict:
        return self.content[self.key]

    @property
    def place(self) -> str:
        return f":{self.key + 1}: " if isinstance(self.key, int) else f", query {self.key}: "

    @property
    def list_name(self) -> str:
        return FIELDS.get(self.form, "candidates")

    @property
    def chosen(self) -> dict:
        return self.row[self.list_name][self.candidate]

    def error(self, field: str, found: str) -> list[str]:
        return [f"{self.place}field '{field}': ", found]

    def set(self, name: str, value) -> list[str]:
        """Sets a field of the candidate; what the error has to say."""
        self.chosen[name] = value
        return self.error(f"{self.list_name}.{self.candidate}.{name}", f"(found {value!r}")


Mutation = Callable[[Case], list[str]]
MUTATION_OF: dict[str, tuple[Mutation, set[str]]] = {}
OWN = {"pointers", "completions"}
POINTERS = {"pointers", "global", "local"}
RL = {"global", "local"}
EVERY = set(FORMS)


def mutation(*forms: str):
    """Registers a mutation for the forms in which it makes sense."""

    def register(function: Mutation) -> Mutation:
        MUTATION_OF[function.__name__] = (function, set(forms))
        return function

    return register


@mutation(*EVERY)
def missing_field(case: Case) -> list[str]:
    required = {"pointers": "id", "completions": "candidates", "beams": "score_list"}
    if case.form in required:
        del case.row[required[case.form]]
        return case.error(required[case.form], "(found missing)")
    name = "pointer" if case.form == "global" else "pointer_global"
    del case.chosen[name]
    return case.error(f"pointer_candidates.{case.candidate}.{name}", "(found missing)")


@mutation(*EVERY)
def wrong_type(case: Case) -> list[str]:
    value = case.rng.choice(["0.5", [0.5], {"score": 1}, True])
    if case.form == "beams":
        case.row["score_list"][1] = value
        return case.error("score_list.1", f"(found {value!r})")
    return case.set("reward", value)


@mutation(*EVERY)
def not_a_number(case: Case) -> list[str]:
    value = case.rng.choice([NAN, INFINITY, -INFINITY])
    if case.form == "beams":
        case.row["shot_scores"][2][0] = value
        return case.error("shot_scores.2.0", f"(found {value})")
    return case.set(case.rng.choice(["beam_score", "logprob_score", "similarity_score", "reward"]), value)


@mutation(*OWN, *RL)
def not_a_number_in_a_further_column(case: Case) -> list[str]:
    case.chosen["own"] = [{"deep": NAN}]
    return case.error(f"{case.list_name}.{case.candidate}.own.0.deep", "(found nan)")


@mutation(*POINTERS, "beams")
def id_outside_the_data_set(case: Case) -> list[str]:
    if case.form == "beams":
        case.row["id_list"][1][0] = 7
        return case.error("id_list.1", "found [7]")
    name = "pool" if case.form == "pointers" else "candidate_pool_ids"
    case.row[name] = [*case.row[name], 7]
    return case.error(name, "found [7]")


@mutation("pointers", "global")
def pointer_outside_the_pool(case: Case) -> list[str]:
    case.chosen.pop("pointer_pos", None)
    outside = case.rng.choice(sorted(EXAMPLES - set(case.row.get("pool") or case.row["candidate_pool_ids"])))
    case.chosen["pointer"] = [outside]
    return case.error(f"{case.list_name}.{case.candidate}.pointer", f"(found [{outside}])")


@mutation(*POINTERS, "beams")
def id_twice(case: Case) -> list[str]:
    if case.form == "beams":
        case.row["id_list"][0][1] = case.row["id_list"][0][0]
        return case.error("id_list.0", f"duplicate id {case.row['id_list'][0][0]}")
    name = "pointer_global" if case.form == "local" else "pointer"
    case.chosen[name] = [case.chosen[name][0]] * 2
    return case.error(f"{case.list_name}.{case.candidate}.{name}", f"duplicate id {case.chosen[name][0]}")


@mutation(*EVERY)
def no_candidates(case: Case) -> list[str]:
    case.row[case.list_name] = []
    return case.error(case.list_name, "(found [])")


@mutation(*EVERY)
def group_twice(case: Case) -> list[str]:
    if isinstance(case.content, list):
        case.content[-1] = {**case.content[-1], "id": case.content[0]["id"]}
        return [f":{len(case.content)}: field 'id': duplicate {case.content[0]['id']!r}, first at "]
    text = as_bytes(case.content).decode().replace('"15": ', '"10": ')
    case.content = text.encode()
    return ["duplicate key '10' in one object"]


@mutation(*EVERY)
def two_kinds(case: Case) -> list[str]:
    if case.form in OWN:
        last = len(case.row["candidates"]) - 1
        other = {"completion": "x"} if case.form == "pointers" else {"pointer": [101]}
        case.row["candidates"][last] = other
        return case.error(f"candidates.{last}", f"(found {other!r})")
    case.content["15"] = beams(case.rng)["15"] if case.form in RL else rl_data(case.rng, local=False)["15"]
    found = "id_list" if case.form in RL else "pointer_candidates"
    return [f", query 15: expected '{case.list_name}' as query 10 has, found '{found}'"]


@mutation(*OWN)
def two_kinds_of_groups(case: Case) -> list[str]:
    other = completion_groups if case.form == "pointers" else pointer_groups
    case.content[-1] = other(case.rng)[-1]
    return [f":{len(case.content)}: field 'candidates': expected {case.form} as in ", "found "]


@mutation(*POINTERS, "completions")
def percentage(case: Case) -> list[str]:
    return case.set(case.rng.choice(["vqa_acc_score", "vqa_rel_score"]), case.rng.choice([55, 1.2, -0.1]))


@mutation(*POINTERS, "completions")
def correct_is_neither_0_nor_1(case: Case) -> list[str]:
    return case.set("vqa_correct", case.rng.choice([2, -1, 0.5, "yes"]))


@mutation("global", "local")
def negative_position(case: Case) -> list[str]:
    name = "pointer_pos" if case.form == "global" else "pointer"
    case.chosen[name][0] = -1
    return case.error(f"pointer_candidates.{case.candidate}.{name}.0", "(found -1)")


@mutation("global", "local")
def position_of_another(case: Case) -> list[str]:
    name = "pointer_pos" if case.form == "global" else "pointer"
    case.chosen[name][0] = (case.chosen[name][0] + 1) % 8
    return case.error(f"pointer_candidates.{case.candidate}.{name}", f"position {case.chosen[name][0]} of the pool is")


@mutation("global", "local")
def position_outside_the_pool(case: Case) -> list[str]:
    name = "pointer_pos" if case.form == "global" else "pointer"
    case.chosen[name][0] = 64
    return case.error(f"pointer_candidates.{case.candidate}.{name}", "a pool of 8, found 64")


@mutation(*POINTERS, "beams")
def empty_pointer(case: Case) -> list[str]:
    if case.form == "beams":
        case.row["id_list"][2] = [int(case.key)]
        return case.error("id_list.2", "expected at least one example before the query, found none")
    name = "pointer_global" if case.form == "local" else "pointer"
    case.chosen[name] = []
    return case.error(f"{case.list_name}.{case.candidate}.{name}", "(found [])")


@mutation(*EVERY)
def null_id(case: Case) -> list[str]:
    if case.form in OWN:
        case.row["id"] = None
        return case.error("id", "(found None)")
    if case.form == "beams":
        case.row["id_list"][0][-1] = None
        return case.error("id_list.0", "item 2: expected an integer or a text, found None")
    case.row["candidate_pool_ids"][3] = None
    return case.error("candidate_pool_ids", "item 3: expected an integer or a text, found None")


@mutation("global", "local", "beams")
def id_of_another_query(case: Case) -> list[str]:
    if case.form == "beams":
        case.row["id_list"][0][-1] = 99
        return case.error("id_list.0", "found 99")
    case.row["query"]["query_id"] = 99
    return case.error("query.query_id", "found 99")


@mutation(*EVERY)
def not_an_object(case: Case) -> list[str]:
    value = case.rng.choice([5, "x", [1]])
    case.content[case.key] = value
    return [case.place, f"found {value!r}"]


@mutation(*EVERY)
def truncated(case: Case) -> list[str]:
    content = as_bytes(case.content)
    lines = content.splitlines(keepends=True)
    cut = len(lines) - (1 if isinstance(case.content, list) else 2)
    case.content = b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2]
    return [f":{cut + 1}: column ", "not valid JSON: "]


@mutation(*EVERY)
def not_utf8(case: Case) -> list[str]:
    lines = as_bytes(case.content).splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"', b'"\xff\xfe', 1)
    case.content = b"".join(lines)
    return [":4: not UTF-8 text: invalid start byte"]


# -- the test ---------------------------------------------------------------------------------------------------------


def mutate(number: int) -> tuple[str, bytes, list[str], str]:
    """Suffix and content of a wrong file, what its error has to say, and a name."""
    rng = random.Random(number)
    possible = [(name, form) for name, (_, forms) in MUTATION_OF.items() for form in sorted(forms)]
    name, form = possible[number % len(possible)]
    content = FORMS[form](rng)
    keys = list(range(len(content) - 1)) if isinstance(content, list) else list(content)[:-1]
    case = Case(form, content, rng.choice(keys[1:]), rng.randrange(3), rng)
    expected = MUTATION_OF[name][0](case)
    written = case.content if isinstance(case.content, bytes) else as_bytes(case.content)
    return ".jsonl" if form in OWN else ".json", written, expected, f"{name}, {form}"


@pytest.mark.parametrize("form", FORMS)
def test_the_files_are_valid_before(tmp_path, form):
    path = tmp_path / f"file{'.jsonl' if form in OWN else '.json'}"
    path.write_bytes(as_bytes(FORMS[form](random.Random(0))))
    assert len(load_groups(path, example_ids=EXAMPLES)) == 6


def test_100_mutations_reach_every_kind_in_every_form():
    possible = sum(len(forms) for _, forms in MUTATION_OF.values())
    assert 70 <= possible <= MUTATIONS


@pytest.mark.parametrize("number", range(MUTATIONS), ids=lambda number: mutate(number)[3])
def test_each_mutation_gets_its_error(tmp_path, number):
    suffix, content, expected, _ = mutate(number)
    path: Path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        load_groups(path, example_ids=EXAMPLES)
    [problem] = caught.value.problems
    assert problem.startswith(str(path))
    for part in expected:
        assert part in problem
    examples = tmp_path / "examples.jsonl"
    records = [{"id": item, "question": "q", "answers": ["a"], "image": "none.png"} for item in EXAMPLES]
    examples.write_bytes(as_bytes(records))
    with pytest.raises(SystemExit) as ended:
        main(["--dataset_name", str(path), "--output", str(tmp_path / "out.jsonl"), "--examples", str(examples)])
    assert ended.value.code == f"error: {problem}"
    assert not (tmp_path / "out.jsonl").exists()
