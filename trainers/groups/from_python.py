"""What trainers on stored groups are given from Python: a model by its name, groups as rows of a data set."""

from collections.abc import Mapping, Sequence

from datasets import Dataset
from torch import nn

from data.candidate_groups import load_groups
from data.io.records import GivenRows
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import StoredGroup, stored_groups
from trainers.groups.policies import GroupPolicy

Groups = Dataset | Sequence[StoredGroup]


def as_groups(dataset: Groups | None, name: str, policy: GroupPolicy, model: nn.Module) -> list[StoredGroup]:
    """The groups themselves, or those in the rows of a data set, with their stored `reward`.

    Args:
        name: of the data set, for messages.

    Raises:
        TypeError: no data, or several data sets.
        RecordError: lists every problem of every row.
    """
    if isinstance(dataset, Dataset):
        arguments = GroupArguments(dataset_name=name, policy=policy.kind)
        by_length = not policy.compares_lengths(model)
        return stored_groups(load_groups(GivenRows(name, dataset)), arguments, by_length=by_length)
    groups = None if dataset is None or isinstance(dataset, Mapping) else list(dataset)
    if groups is None or not all(isinstance(group, StoredGroup) for group in groups):
        raise TypeError(f"{name}: expected a data set of candidate groups, or stored groups, found {dataset!r:.80}")
    return groups
