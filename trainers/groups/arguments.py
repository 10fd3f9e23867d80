"""What a recipe says of stored groups: where they are, what they are rewarded by, and the policy that learns."""

from dataclasses import dataclass, field
from typing import Literal

from rewards.registry import check_weights
from trainers.setup.recipes import DataArguments, parse_entries, parse_mapping


@dataclass
class GroupArguments(DataArguments):
    """The groups, what they are rewarded by, and the policy that learns from them."""

    policy: Literal["selector", "vlm"] = field(
        default="selector",
        metadata={"help": "What learns: a selector (candidates are pointers) or a VLM (completions)."},
    )
    query_table: str | None = field(
        default=None, metadata={"help": "Embeddings of the queries (rollouts/embeddings.py); selector only."}
    )
    eval_query_table: str | None = field(
        default=None,
        metadata={"help": "Embeddings of the evaluation's queries, where query_table has those of training alone."},
    )
    example_table: str | None = field(
        default=None, metadata={"help": "Embeddings of the examples, made by the same encoders; selector only."}
    )
    query_data: str | None = field(
        default=None,
        metadata={"help": "VQA records of the queries, for a selector with encoders of its own, in place of tables."},
    )
    query_splits: list[str] | None = field(
        default=None, metadata={"help": "Splits of query_data that queries are looked up in; by default train."}
    )
    example_data: str | None = field(
        default=None, metadata={"help": "VQA records of the examples, for a selector with encoders of its own."}
    )
    example_split: str | None = field(default=None, metadata={"help": "Split of example_data; by default train."})
    pools: str | None = field(
        default=None, metadata={"help": "Candidate pools (rollouts/pools.py), for groups that bring none."}
    )
    eval_pools: str | None = field(
        default=None, metadata={"help": "Candidate pools of the evaluation's queries; by default those of pools."}
    )
    selector: dict | str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a new selector (models/selectors/pointer.py), in place of model_name_or_path; "
            "embedding_size is that of the tables. With encoders of its own: models/selectors/encoding.py."
        },
    )
    shots: list[int] | None = field(
        default=None, metadata={"help": "Learn only from pointers of these lengths; by default from all."}
    )
    reward_funcs: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rewards that score the stored candidates (rewards/registry.py); by default the stored reward.",
            "type": list[str | dict],
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each of reward_funcs; by default 1."}
    )
    reward_field: str | None = field(
        default=None, metadata={"help": "Field of a candidate, or name in its scores, to take as its reward."}
    )
    accuracy_field: str | None = field(
        default=None, metadata={"help": "Field that eval_accuracy averages; by default the reward itself."}
    )
    task_data: str | None = field(
        default=None, metadata={"help": "Data set (data/tasks.py) with the groups' prompts, found by id; vlm only."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.reward_funcs = parse_entries(self.reward_funcs)
        self.selector = parse_mapping("selector", self.selector)
        if isinstance(self.selector, str):
            raise ValueError(f"selector: expected a mapping, found {self.selector}")
        if self.reward_funcs and self.reward_field is not None:
            raise ValueError("reward_funcs and reward_field both say what the reward is: set one of them")
        check_weights(self.reward_funcs or (), self.reward_weights)
        if self.shots is not None and not (self.shots and all(count >= 1 for count in self.shots)):
            raise ValueError(f"shots: expected numbers of at least 1, found {self.shots}")
        data = ("query_data", "query_splits", "example_data", "example_split")
        own = ("eval_query_table", "eval_pools")
        foreign = ("query_table", "example_table", *data, "pools", *own, "selector", "shots")
        foreign = foreign if self.policy == "vlm" else ("task_data",)
        for split, source in (("query_splits", "query_data"), ("example_split", "example_data")):
            if getattr(self, split) is not None and getattr(self, source) is None:
                raise ValueError(f"{split}: of {source}, which is not set")
        for name in foreign:
            if getattr(self, name) is not None:
                other = "selector" if self.policy == "vlm" else "vlm"
                raise ValueError(f"{name}: only policy: {other} reads it")
