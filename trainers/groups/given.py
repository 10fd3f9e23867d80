"""What trainers on stored groups are given from Python: a model by its name, groups as rows of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datasets import Dataset
from torch import nn

from data.candidate_groups import load_groups
from data.io.records import GivenRows
from models.selectors.encoding import EncodingSelector
from models.selectors.load import load_encoding_selector, load_selector
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import StoredGroup, stored_groups
from trainers.groups.policies import GroupPolicy
from trainers.groups.selector_policy import EncodingPolicy, SelectorPolicy
from trainers.groups.vlm_policy import VLMPolicy
from trainers.setup.checks import check_policy_settings
from trainers.setup.model import load_to_train
from trainers.setup.recipes import RecipeError
from trainers.setup.task_data import check_lengths, count_tokens
from trainers.setup.zero_stage import leave_weights_whole

Groups = Dataset | Sequence[StoredGroup]


def kind_of(policy: GroupPolicy) -> Literal["selector", "vlm"]:
    """As recipes call it."""
    return "selector" if isinstance(policy, SelectorPolicy) else "vlm"


def check_settings_of(policy: GroupPolicy, args: Any) -> None:
    """Raises `RecipeError` for settings that the policy does not read, or says otherwise itself."""
    check_policy_settings(kind_of(policy), args)
    if isinstance(policy, SelectorPolicy) and args.label_smoothing_factor not in (0, policy.label_smoothing):
        found = f"the configuration says {args.label_smoothing_factor}, the policy {policy.label_smoothing}"
        raise RecipeError(f"label_smoothing_factor: {found}; leave out one")


def load_policy_model(
    name: str,
    args: Any,
    options: Mapping[str, Any],
    policy: GroupPolicy,
    quantization: Any = None,
    adapters: Any = None,
) -> nn.Module:
    """The model of a folder or Hub id, to be trained.

    Args:
        args: of the trainer; their `model_init_kwargs` are taken out.
        options: of `from_pretrained`.
        adapters: PEFT configuration of new ones; by default of all linear layers.

    Raises:
        RecipeError: adapters or quantisation of a selector.
        ValueError: another kind of model than the policy's.
    """
    if kind_of(policy) == "vlm":
        return load_to_train(name, args, options, quantization, adapters)
    if quantization is not None or adapters is not None:
        raise RecipeError("peft_config, quantization_config: a selector is trained as it is; leave them out")
    args.model_init_kwargs = None
    leave_weights_whole(args, "a selector")
    load = load_encoding_selector if isinstance(policy, EncodingPolicy) else load_selector
    return load(name, options.get("revision"))


def _compares_lengths(model: nn.Module) -> bool:
    """Whether pointers of different lengths are candidates of one group: the selector decides when to stop."""
    selector = model.selector if isinstance(model, EncodingSelector) else model
    return bool(getattr(selector.config, "stop", False))


def as_groups(dataset: Groups | None, name: str, policy: GroupPolicy, model: nn.Module) -> list[StoredGroup]:
    """The groups themselves, or those in the rows of a data set, with their stored `reward`.

    Args:
        name: of the data set, for messages.

    Raises:
        TypeError: no data, or several data sets.
        RecordError: lists every problem of every row.
    """
    if isinstance(dataset, Dataset):
        kind = kind_of(policy)
        by_length = kind == "selector" and not _compares_lengths(model)
        arguments = GroupArguments(dataset_name=name, policy=kind)
        return stored_groups(load_groups(GivenRows(name, dataset)), arguments, by_length=by_length)
    groups = None if dataset is None or isinstance(dataset, Mapping) else list(dataset)
    if groups is None or not all(isinstance(group, StoredGroup) for group in groups):
        raise TypeError(f"{name}: expected a data set of candidate groups, or stored groups, found {dataset!r:.80}")
    return groups


def check_prompt_lengths(groups: Sequence[StoredGroup], name: str, policy: VLMPolicy, limit: int) -> None:
    """Raises `RecordError` if a prompt has more tokens than `limit`."""
    rows = [{"id": group.id, **group.columns} for group in groups]
    check_lengths(count_tokens(rows, name, policy.bounds, policy.processor), name, limit, "max_prompt_length")
