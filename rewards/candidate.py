"""Rewards of a selector's candidates: was the VLM right, how sure was it, beam score; and how the chosen examples go
together.

A candidate's fields (`data.candidate_groups.Candidate`) come as columns; the completion itself is not read.

| reward_mode | reward |
|---|---|
| hard_plus_soft | hard_weight * correct + soft_weight * accuracy |
| hard_plus_soft_v2 | 2 * hard_weight * correct + soft_weight * accuracy |
| separated | soft_weight * accuracy, and 2 * hard_weight more for a correct answer |
| hard_only | hard_weight * correct |
| soft_only | soft_weight * accuracy |
| hard01_plus_gtprob | hard_weight * correct + soft_weight * gt_prob |
| hard01_plus_gtprob_separated | soft_weight * gt_prob, and 2 * hard_weight more for a correct answer |
| hard_plus_gtprob_plus_rel | hard_weight * correct + soft_weight * gt_prob + rel_weight * rel_score * (1 - correct) |
| legacy | alpha * quality + beta * correctness |

`correct`, `accuracy`, `gt_prob` and `rel_score` are the fields vqa_correct, vqa_acc_score, vqa_gt_prob and
vqa_rel_score; what is missing counts 0. `quality` is the beam score, or with use_logprob, where there is one, minus
the log-probability. `correctness` is vqa_correct, or else the accuracy, or else (and then whatever the mode) 0, under
correctness_mode "01"; under "pm1" 0 to 1 becomes -1 to 1. In the separated modes correct means exactly 1.

`ExampleSequence` looks at the examples themselves, through their embeddings.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, get_args

import numpy as np

from data.candidates.embedding_table import EmbeddingTable, table_path
from data.candidates.legacy_formats import ConstructOrder
from rewards.base import Reward
from rewards.scoring import columns as column_types

REWARD_MODES = {  # mode: the fields that it reads
    "hard_plus_soft": ("vqa_correct", "vqa_acc_score"),
    "hard_plus_soft_v2": ("vqa_correct", "vqa_acc_score"),
    "separated": ("vqa_correct", "vqa_acc_score"),
    "hard_only": ("vqa_correct",),
    "soft_only": ("vqa_acc_score",),
    "hard01_plus_gtprob": ("vqa_correct", "vqa_gt_prob"),
    "hard01_plus_gtprob_separated": ("vqa_correct", "vqa_gt_prob"),
    "hard_plus_gtprob_plus_rel": ("vqa_correct", "vqa_gt_prob", "vqa_rel_score"),
    "legacy": ("vqa_correct", "vqa_acc_score", "beam_score", "logprob_score"),
}
CORRECTNESS_MODES = ("01", "pm1")
REWARD_CLIP = (-5.0, 5.0)


def _number(name: str, value: float | None) -> float:
    """A finite float; 0 for what is missing."""
    if value is None:
        return 0.0
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number or None, found {value!r:.80}")
    return float(value)


def _weight(name: str, value: float) -> float:
    """A finite float."""
    if value is None:
        raise ValueError(f"{name}: expected a finite number, found None")
    return _number(name, value)


def _check_clip(reward_clip: Sequence[float]) -> tuple[float, float]:
    numbers = isinstance(reward_clip, list | tuple) and len(reward_clip) == 2
    if not numbers or not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in reward_clip):
        raise ValueError(f"reward_clip: expected a smallest and a largest reward, found {reward_clip!r:.80}")
    low, high = map(float, reward_clip)
    if low > high:
        raise ValueError(f"reward_clip: expected the smaller bound first, found {reward_clip!r}")
    return low, high


class CandidateReward(Reward):
    """Reward of a stored candidate from its fields (correctness, accuracy, probability of the answers, beam score).

    `None` for candidates with none of the fields that the mode reads; where only some are missing, they count 0.

    Args:
        reward_mode: see the table of this module.
        hard_weight, soft_weight, rel_weight, alpha, beta: weights in it.
        correctness_mode: "01" or "pm1"; of the legacy mode.
        use_logprob: the legacy mode takes minus the log-probability, where there is one, for the beam score.
        reward_clip: smallest and largest reward.
    """

    name = "candidate"
    columns = ("vqa_correct", "vqa_acc_score", "vqa_gt_prob", "vqa_rel_score", "beam_score", "logprob_score")
    types: ClassVar = dict.fromkeys(columns, column_types.number)
    optional = columns

    def __init__(
        self,
        reward_mode: str = "hard_plus_soft",
        hard_weight: float = 1.0,
        soft_weight: float = 1.0,
        rel_weight: float = 0.1,
        alpha: float = 0.0,
        beta: float = 0.0,
        correctness_mode: str = "01",
        use_logprob: bool = False,
        reward_clip: Sequence[float] = REWARD_CLIP,
    ):
        if reward_mode not in REWARD_MODES:
            raise ValueError(f"reward_mode: expected one of {', '.join(REWARD_MODES)}, found {reward_mode!r}")
        if correctness_mode not in CORRECTNESS_MODES:
            expected = ", ".join(CORRECTNESS_MODES)
            raise ValueError(f"correctness_mode: expected one of {expected}, found {correctness_mode!r}")
        self.minimum, self.maximum = _check_clip(reward_clip)
        self.reward_mode, self.correctness_mode, self.use_logprob = reward_mode, correctness_mode, use_logprob
        self.hard_weight, self.soft_weight = _weight("hard_weight", hard_weight), _weight("soft_weight", soft_weight)
        self.rel_weight = _weight("rel_weight", rel_weight)
        self.alpha, self.beta = _weight("alpha", alpha), _weight("beta", beta)

    def score(self, text: str, *row: float | None) -> float | None:
        fields = dict(zip(self.columns, row, strict=True))
        if all(fields[name] is None for name in REWARD_MODES[self.reward_mode]):
            return None
        return self.reward(**fields)

    def reward(self, **fields: float | None) -> float:
        """The reward of one candidate, within `reward_clip`; see the table of this module.

        Args:
            fields: those of `columns` that the candidate has.

        Raises:
            ValueError: a number that is NaN or infinite.
        """
        mode, correct = self.reward_mode, _number("vqa_correct", fields.get("vqa_correct"))
        if mode == "legacy":
            reward = self.alpha * self._quality(fields) + self.beta * self._correctness(fields)
        elif mode == "hard_only":
            reward = self.hard_weight * correct
        else:
            name = "vqa_gt_prob" if "gtprob" in mode else "vqa_acc_score"
            soft = self.soft_weight * _number(name, fields.get(name))
            if mode == "soft_only":
                reward = soft
            elif mode.endswith("separated"):
                reward = soft + (2 * self.hard_weight if correct == 1 else 0.0)
            elif mode == "hard_plus_soft_v2":
                reward = 2 * self.hard_weight * correct + soft
            else:
                reward = self.hard_weight * correct + soft
        if mode == "hard_plus_gtprob_plus_rel":
            reward += self.rel_weight * _number("vqa_rel_score", fields.get("vqa_rel_score")) * (1 - correct)
        if math.isnan(reward):
            raise ValueError(f"reward_mode {mode}: the fields are too large to be added")
        return min(self.maximum, max(self.minimum, reward))

    def _quality(self, fields: Mapping[str, float | None]) -> float:
        if self.use_logprob and fields.get("logprob_score") is not None:
            return -_number("logprob_score", fields["logprob_score"])
        return _number("beam_score", fields.get("beam_score"))

    def _correctness(self, fields: Mapping[str, float | None]) -> float:
        correct, accuracy = fields.get("vqa_correct"), fields.get("vqa_acc_score")
        known = accuracy if correct is None else correct
        if known is None:
            return 0.0
        value = _number("vqa_correct or vqa_acc_score", known)
        return value if self.correctness_mode == "01" else 2 * value - 1


def candidate_reward(**values: Any) -> float:
    """The reward of one candidate.

    Args:
        values: its fields, and settings of `CandidateReward`.

    >>> candidate_reward(vqa_correct=1, vqa_acc_score=0.6, reward_mode="separated")
    2.6
    """
    fields = {name: values.pop(name) for name in CandidateReward.columns if name in values}
    return CandidateReward(**values).reward(**fields)


class BeamScore(Reward):
    """The candidate's beam score as it is; `None` where there is none."""

    name = "beam_score"
    columns = ("beam_score",)
    types: ClassVar = {"beam_score": column_types.number}
    minimum = -math.inf
    maximum = math.inf

    def score(self, text: str, beam_score: float | None) -> float | None:
        return None if beam_score is None else _number("beam_score", beam_score)


class ExampleSequence(Reward):
    """How well the chosen examples go together: coherence of the sequence that the VLM reads, and diversity.

    `None` for a candidate that is no pointer. Otherwise, of embeddings, coherence_weight * coherence +
    diversity_weight * diversity with

        coherence   mean cosine of neighbours in the order in which they are read, the query last; -1 to 1
        diversity   1 - mean cosine over all pairs of examples; 0 of a single one; at most 2

    Source: coherence as Foltz, Kintsch and Landauer 1998 have it of the sentences of a text; diversity is 1 minus the
    intra-list similarity of Ziegler et al. 2005.

    Args:
        query_table, example_table: embeddings (`data.candidates.embedding_table`) by the same encoders; those of the
            recipe, where it has them.
        coherence_weight, diversity_weight: at least 0.
        construct_order: "left" if each newly selected example is put before the earlier ones, "right" if after them.
    """

    name = "example_sequence"
    columns = ("id", "pointer")
    types: ClassVar = {"id": column_types.one_id, "pointer": column_types.ids}
    text_only = False

    def __init__(
        self,
        query_table: str,
        example_table: str,
        coherence_weight: float = 0.5,
        diversity_weight: float = 0.5,
        construct_order: ConstructOrder = "left",
    ):
        weights = {"coherence_weight": coherence_weight, "diversity_weight": diversity_weight}
        for name, weight in weights.items():
            if _weight(name, weight) < 0:
                raise ValueError(f"{name}: expected at least 0, found {weight!r}")
        if construct_order not in get_args(ConstructOrder):
            expected = " or ".join(get_args(ConstructOrder))
            raise ValueError(f"construct_order: expected {expected}, found {construct_order!r}")
        for name, path in (("query_table", query_table), ("example_table", example_table)):
            if not table_path(path).is_file():
                raise ValueError(f"{name}: {table_path(path)}: no such file")
        self.paths = str(query_table), str(example_table)
        self.coherence_weight, self.diversity_weight = coherence_weight, diversity_weight
        self.construct_order = construct_order
        self.minimum, self.maximum = -float(coherence_weight), float(coherence_weight + 2 * diversity_weight)

    @cached_property
    def _tables(self) -> tuple[EmbeddingTable, EmbeddingTable]:
        """Those of queries and examples; read at the first use."""
        queries, examples = self.paths
        table = EmbeddingTable.load(queries)
        other = table if examples == queries else EmbeddingTable.load(examples)
        table.check_same_encoders(other)
        return table, other

    def score(self, text: str, item: int | str, pointer: list[int | str] | None) -> float | None:
        if pointer is None:
            return None
        if not pointer:
            raise ValueError("pointer: expected at least one example, found none")
        queries, examples = self._tables
        vectors = np.concatenate([queries.values[queries.rows([item])], examples.values[examples.rows(pointer)]])
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)  # (1 + n, 1)
        units = np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0)
        cosines = (units @ units.T).clip(-1, 1)  # the query first; a zero vector is similar to nothing
        coherence = _mean_of_neighbours(cosines, self.construct_order)
        pairs = cosines[1:, 1:][np.triu_indices(len(pointer), k=1)]
        diversity = 1 - pairs.mean() if len(pairs) else 0.0
        return float(self.coherence_weight * coherence + self.diversity_weight * diversity)


def _mean_of_neighbours(cosines: np.ndarray, construct_order: str) -> float:
    """Of the query, in row 0, and the examples in the order of selection: that of reading, or its reverse."""
    chain = list(range(len(cosines)))
    chain = chain if construct_order == "left" else [*chain[1:], 0]
    return float(cosines[chain[:-1], chain[1:]].mean())
