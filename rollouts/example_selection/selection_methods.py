"""Ways of choosing which examples are shown: none, by chance, by similarity, and by a trained selector."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from data.candidates.embedding_table import EmbeddingTable
from data.io.records import RecordError
from data.reports.pool import ItemId
from models.errors import ModelError
from models.run_folders import find_model
from rollouts.example_selection.candidate_sets import random_tuples
from rollouts.example_selection.data import SelectionData, cosines, pool_batch

ZERO_SHOT = "zero_shot"
RANDOM = "random"
RANDOM_FIXED = "random_fixed"
SIMILARITIES = {
    "image_similarity": ("image",),
    "text_similarity": ("text",),
    "image_text_similarity": ("image", "text"),
}
"""Method -> parts of the embeddings whose cosines are added up."""
METHODS = (ZERO_SHOT, RANDOM, RANDOM_FIXED, *SIMILARITIES)
NAMED_SELECTOR = re.compile(r"([\w.-]+)=(.+)")
SELECTOR_BATCH = 256

Choice = list[ItemId]
"""Ids of examples, in the order of selection."""


@dataclass(frozen=True)
class Method:
    """One way of choosing.

    Attributes:
        name: in tables and names of files.
        selector: folder or Hub id of a trained selector, for those.
    """

    name: str
    selector: str | None = None

    @property
    def needs_tables(self) -> bool:
        return self.selector is not None or self.name in SIMILARITIES


def parse_methods(texts: Sequence[str]) -> list[Method]:
    """Methods by their names, and selectors as NAME=FOLDER (a model, a run's folder, or a Hub id).

    Raises:
        RecordError: an unknown method, a duplicate name, or a folder without a model.
    """
    methods, problems = [], []
    for text in texts:
        named = NAMED_SELECTOR.fullmatch(text)
        if named is None and text not in METHODS:
            problems.append(f"--methods: expected one of {', '.join(METHODS)}, or NAME=SELECTOR, found {text!r}")
        elif named is not None and (named[1] in METHODS or named[1].startswith(("best_of_", "mean_of_"))):
            problems.append(f"--methods: '{named[1]}' is a method of its own, no name for a selector")
        else:
            try:
                methods.append(Method(text) if named is None else Method(named[1], find_model(named[2])))
            except ModelError as error:
                problems.append(f"--methods {named[1]}: {error}")
    names = [method.name for method in methods]
    problems += [f"--methods: duplicate '{name}'" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise RecordError(problems)
    return methods


Chooser = Callable[[int], list[Choice]]
"""Number of shots -> a choice for each query, in the order of the queries."""


def random_sets(data: SelectionData, shots: int, count: int, seed: int) -> list[list[Choice]]:
    """For each query, `count` different sets of its pool, or as many as there are; drawn by seed and query id."""
    found = []
    for query in data.queries:
        pool = data.pool_of(query)
        drawn = random_tuples(len(pool), shots, count, Random(f"{seed} {query.id!r} {shots} of {count}"))
        found.append([[pool[position] for position in positions] for positions in drawn])
    return found


def fixed_choice(data: SelectionData, shots: int, seed: int) -> list[Choice]:
    """The same examples for every query, drawn from all; a query among them is replaced by one more example."""
    drawn = Random(f"{seed} fixed {shots}").sample(list(data.examples), min(shots + 1, len(data.examples)))
    choices = []
    for query in data.queries:
        is_example = data.examples.get(query.id) is query
        choices.append([item for item in drawn if not (is_example and item == query.id)][:shots])
    return choices


def most_similar(
    data: SelectionData, shots: int, parts: Sequence[str], queries: EmbeddingTable, examples: EmbeddingTable
) -> list[Choice]:
    """The examples of each query's pool with the largest sum of cosines over these parts, most similar first."""
    of_queries = [queries.part(part) for part in parts]
    of_examples = [examples.part(part) for part in parts]
    choices = []
    for query, row in zip(data.queries, queries.rows([query.id for query in data.queries]), strict=True):
        pool = data.pool_of(query)
        rows = examples.rows(pool)
        sums = [cosines(left[row], right[rows]) for left, right in zip(of_queries, of_examples, strict=True)]
        best = np.argsort(-np.sum(sums, axis=0), kind="stable")[:shots]
        choices.append([pool[position] for position in best])
    return choices


def selected(
    selector, data: SelectionData, shots: int, queries: EmbeddingTable, examples: EmbeddingTable
) -> list[Choice]:
    """What a trained selector chooses from each query's pool, always taking the best example next."""
    choices = []
    for start in range(0, len(data.queries), SELECTOR_BATCH):
        ids = [query.id for query in data.queries[start : start + SELECTOR_BATCH]]
        pools = [data.pools[item] for item in ids]
        batch = pool_batch(ids, pools, queries, examples).to(selector.device)
        found = selector.select(batch.queries, batch.examples, batch.pools, shots).pointers[:, 0].tolist()
        choices += [[pool[place] for place in places if place >= 0] for pool, places in zip(pools, found, strict=True)]
    return choices


def check_tables(selector: str, tables: tuple[EmbeddingTable, EmbeddingTable], fingerprints: dict[str, str]) -> None:
    """Raises a `RecordError` unless the tables are by the encoders that were trained along with a selector."""
    for table, option in zip(tables, ("--query_table", "--example_table"), strict=True):
        try:
            table.check_encoders(fingerprints)
        except RecordError as error:
            hint = f"make it by python -m rollouts.embeddings --selector {selector}"
            raise RecordError([f"{option}: {problem}; {hint}" for problem in error.problems]) from error


def load_fitting_selector(name: str, tables: tuple[EmbeddingTable, EmbeddingTable], shots: int, device=None):
    """A trained selector, and where it was found: the model itself, or the newest complete checkpoint of a run.

    Raises:
        RecordError: no selector there, or one for embeddings of another width, of other encoders than were trained
            along with it, or for fewer shots.
    """
    from models.selectors.encoders import load_selector_encoders
    from models.selectors.load import has_encoders, load_selector

    try:
        found = find_model(name)
        if has_encoders(found):
            trained = load_selector_encoders(found, "cpu")
            check_tables(found, tables, trained.fingerprints)
            selector = trained.selector
        else:
            selector = load_selector(found)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        raise RecordError([f"selector {name}: {error}"]) from error
    expected, width, limit = selector.config.embedding_size, tables[0].width, selector.shot_limit
    if expected != width:
        raise RecordError([f"selector {found}: expected embeddings of {expected} numbers, the tables have {width}"])
    if limit is not None and shots > limit:
        raise RecordError([f"selector {found}: chooses at most {limit} examples, asked for {shots}"])
    return found, selector.to(device)


def make_chooser(
    method: Method,
    data: SelectionData,
    tables: tuple[EmbeddingTable, EmbeddingTable] | None,
    max_shots: int,
    seed: int,
    device=None,
) -> Chooser:
    """The function behind a method.

    Args:
        tables: of queries and examples, where the method needs them.
        max_shots: the most shots that it will be asked for.
    """
    if method.selector is not None:
        _, selector = load_fitting_selector(method.selector, tables, max_shots, device)
        return lambda shots: selected(selector, data, shots, *tables)
    if method.name in SIMILARITIES:
        return lambda shots: most_similar(data, shots, SIMILARITIES[method.name], *tables)
    if method.name == RANDOM:
        return lambda shots: [sets[0] for sets in random_sets(data, shots, 1, seed)]
    if method.name == RANDOM_FIXED:
        return lambda shots: fixed_choice(data, shots, seed)
    return lambda shots: [[] for _ in data.queries]
