"""What the types of reward models are called; this imports nothing, because what checks a recipe needs it."""

_ENDING = "_reward"


def reward_type(backbone: str) -> str:
    """The type of reward models on backbones of a type.

    >>> reward_type("qwen3_vl")
    'qwen3_vl_reward'
    """
    return f"{backbone}{_ENDING}"


def backbone_type(model_type: str) -> str | None:
    """The type of the backbone of a reward model; `None` for the type of another model.

    >>> backbone_type("qwen3_vl_reward"), backbone_type("qwen3_vl")
    ('qwen3_vl', None)
    """
    return model_type.removesuffix(_ENDING) if model_type.endswith(_ENDING) else None
