"""What the configurations of all example selectors have in common."""

import inspect

from transformers import PreTrainedConfig

from models.errors import ModelError

FOREIGN_FIELDS = ("model_type", "name_or_path", "auto_map", "attn_implementation", "use_cache")
"""What transformers stores in or hands to a configuration, beside the fields of `PreTrainedConfig`; its Trainer stores
`use_cache`."""


class SelectorConfig(PreTrainedConfig):
    """What the configurations of all selectors have in common. Values of a wrong type and unknown names are errors.

    Attributes:
        embedding_size: d, of queries and examples.
        hidden_size, num_heads: of the model.
        temperature: of the softmax over the pool; scores are divided by it.
        stop: after the first example, STOP is one of the choices.
        max_shots: the number of examples after which a model with `stop` has stopped anyway.
        dropout: in training.
        seed: of the initial weights.
    """

    embedding_size: int = 768
    hidden_size: int = 256
    num_heads: int = 1
    temperature: float = 0.1
    stop: bool = False
    max_shots: int = 4
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self, **kwargs):
        unknown = [name for name in kwargs if name not in FOREIGN_FIELDS and not name.startswith("_")]
        if unknown:
            raise ModelError(f"{unknown[0]}: unknown; {type(self).__name__} has {', '.join(self.own_fields())}")
        for name, kind in self.own_fields().items():
            self._check_type(name, kind)
        self.check()
        super().__post_init__(**kwargs)

    @classmethod
    def own_fields(cls) -> dict[str, type]:
        """Name and type of each field that transformers' own configurations lack."""
        fields = {}
        for parent in reversed(cls.__mro__[: cls.__mro__.index(PreTrainedConfig)]):
            fields |= inspect.get_annotations(parent)
        return fields

    def _check_type(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if kind is float and type(value) is int:
            setattr(self, name, float(value))
        elif type(value) is not kind:
            raise ModelError(f"{name}: expected {kind.__name__}, found {value!r}")

    def check(self) -> None:
        """Raises `ValueError` for a value that is out of range."""
        for name in ("embedding_size", "hidden_size", "num_heads", "max_shots"):
            self.expect_least(name, 1)
        if self.hidden_size % self.num_heads:
            raise ModelError(
                f"num_heads: expected a divisor of hidden_size {self.hidden_size}, found {self.num_heads}"
            )
        if not self.temperature > 0:
            raise ModelError(f"temperature: expected more than 0, found {self.temperature}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout: expected at least 0 and less than 1, found {self.dropout}")
        if self.stop and self.max_shots < 2:
            raise ModelError(f"max_shots: expected at least 2 in a model that can stop, found {self.max_shots}")

    def expect_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise ModelError(f"{name}: expected at least {least}, found {getattr(self, name)}")
