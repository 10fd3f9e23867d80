"""Predicted factors as a part of data-quality reports, and as a selection of agents without any report.

A predictor looks at the images that a report is about: those of its pool, or those shown with it where it has none.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from data.agent_selection import AgentSelectionRecord
from data.io.images import ImageSource
from data.prompts import format_selection
from data.reports.pool import load_pool
from data.reports.wording import factor_sentence
from data.tasks import DEFAULT_PROMPT
from filter_agents.factor_routing import Routes

ROUTED_REASONING = "The predicted factors lead to these agents."


def images_of(record: AgentSelectionRecord) -> list[ImageSource]:
    """What is looked at for a record."""
    if record.pool is None:
        return list(record.images)
    pool = load_pool(record.pool)
    return [str(pool.image_path(item)) for item in pool.items]


def predict_records(records: Sequence[AgentSelectionRecord], model: Any, batch_size: int = 64) -> list[Counter]:
    """For each record, the number of its images that each factor applies to.

    Args:
        model: a factor predictor (`models/factors/predictor.py`).
    """
    images = [images_of(record) for record in records]
    found = iter(model.predict([image for part in images for image in part], batch_size))
    return [Counter(factor for _ in part for factor in next(found)) for part in images]


def with_factors(
    record: AgentSelectionRecord, counts: Mapping[str, int], factors: Sequence[str], names: Mapping[str, str]
) -> AgentSelectionRecord:
    """The record with a sentence on its factors at the end of its report.

    Args:
        counts: factor id -> number of images.
        factors: ids in the order in which they are to be named.
        names: id -> readable name.
    """
    named = {names.get(factor, factor): counts.get(factor, 0) for factor in factors}
    sentence = factor_sentence(named, len(images_of(record)))
    return record.model_copy(update={"report": f"{record.report} {sentence}"})


def routed_selection(counts: Mapping[str, int], routes: Routes, least_images: int = 1) -> str:
    """What a model would answer that chose the agents of all factors found on at least so many images."""
    agents = [routes[factor] for factor, count in counts.items() if count >= least_images and routes[factor]]
    return format_selection(dict.fromkeys(agents, DEFAULT_PROMPT), ROUTED_REASONING)
