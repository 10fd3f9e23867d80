"""The memory estimate that a run prints before it starts: what its recipe asks of each device.

Weights are counted exactly, on the meta device. Activations are counted as what gradient checkpointing keeps (the
input of every layer) plus one layer at work; generation as the keys, values and states that it keeps, plus one layer's
prefill.
"""

from dataclasses import dataclass
from typing import Any

import yaml
from accelerate import PartialState

from data.cli.package_files import ACCELERATE_CONFIGS, shipped_file
from models.families.vision_hooks import vision_tower
from models.zero3 import whole_models
from trainers.run.console import say
from trainers.setup.recipes import DataArguments, RecipeError
from trainers.setup.task_data import TokenCounts

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A 4-bit weight, its share of a block's 8-bit constant, and of that constant's own (bitsandbytes, double quant)."""
DEVICE_OVERHEAD = 0.8e9
"""CUDA context and library workspaces, bytes."""
FRAGMENTATION = 1.05
VLLM = "vLLM"
"""The part of vLLM's share that it cannot do without."""
HEAD_TILE = 4096 * 32768
"""Logits that TRL's fused head holds at once."""
LAYER_HIDDEN = 16
LAYER_INTERMEDIATE = 6
"""Values of hidden and of intermediate width that one layer holds a token, forward and backward."""


@dataclass(frozen=True)
class MemoryDemand:
    """What a recipe asks of a device.

    Attributes:
        processes: devices that share the work.
        zero_stage: DeepSpeed ZeRO stage, 0 without it.
        offload: optimizer and parameters are kept in the host's memory (ZeRO offload).
        dtype: of the weights.
        four_bit: linear layers are quantised to NF4.
        lora_rank: of the adapters of all linear layers (of the vision tower too, unless it is frozen), or `None` for
            full training.
        optimizer_bytes: for each trainable parameter; 8 for Adam in float32, 2 in 8 bits.
        reference: a copy of the weights is kept for the KL.
        freeze_vision: the vision tower is not trained.
        rows: completions in a forward pass of training.
        generated_rows: completions generated at once.
        prompt_tokens, completion_tokens: of the longest row.
        visual_tokens: of one row, among the tokens of its prompt.
        checkpointing: gradient checkpointing.
        vllm_share: of the device's memory that vLLM takes, or `None` without it.
        vllm_dtype: of vLLM's weights, and of its keys and values.
        vllm_processes: that share one engine of vLLM.
    """

    processes: int = 1
    zero_stage: int = 0
    offload: bool = False
    dtype: str = "bfloat16"
    four_bit: bool = False
    lora_rank: int | None = None
    optimizer_bytes: float = 8
    reference: bool = False
    freeze_vision: bool = False
    rows: int = 1
    generated_rows: int = 1
    prompt_tokens: int = 1024
    completion_tokens: int = 256
    visual_tokens: int = 0
    checkpointing: bool = True
    vllm_share: float | None = None
    vllm_dtype: str = "bfloat16"
    vllm_processes: int = 1


@dataclass(frozen=True)
class Parameters:
    """Counts of a model's parameters."""

    linear: int  # in linear layers that quantisation replaces
    other: int  # embeddings, norms, output head
    vision: int
    adapter_widths: int  # sum of inputs and outputs of all linear layers of the language model, for LoRA
    vision_adapter_widths: int  # the same of the vision tower
    largest_linear: int

    @property
    def total(self) -> int:
        return self.linear + self.other


def count_parameters(config) -> Parameters:
    """Counts without allocating any weight."""
    import torch
    from transformers import AutoModelForImageTextToText

    with whole_models(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    head, tower = model.get_output_embeddings(), vision_tower(model)
    of_tower = {*tower.modules()}
    linear = adapter_widths = vision_adapter_widths = largest = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            linear += module.weight.numel()
            largest = max(largest, module.weight.numel())
            if module in of_tower:
                vision_adapter_widths += module.in_features + module.out_features
            else:
                adapter_widths += module.in_features + module.out_features
    total = sum(parameter.numel() for parameter in model.parameters())
    vision = sum(parameter.numel() for parameter in tower.parameters())
    return Parameters(linear, total - linear, vision, adapter_widths, vision_adapter_widths, largest)


def _weights(parameters: Parameters, load: MemoryDemand) -> float:
    if load.four_bit:
        return parameters.linear * NF4_BYTES + parameters.other * 2
    return parameters.total * BYTES[load.dtype]


def patches_per_token(config: Any) -> float:
    """Patches of the vision tower that one visual token is made of: where a tower merges, shuffles or pools them, its
    configuration says how many in height and width, or how many tokens remain of an image of fixed size."""
    vision = config.vision_config
    side = getattr(vision, "spatial_merge_size", None) or getattr(vision, "pooling_kernel_size", None)
    side = side or getattr(config, "scale_factor", None) or 1 / getattr(config, "downsample_ratio", 1)
    tokens = getattr(config, "mm_tokens_per_image", None)
    return (vision.image_size // vision.patch_size) ** 2 / tokens if tokens else side**2


def intermediate_size(text: Any) -> int:
    """Of the feed-forward layer that a token goes through; of a mixture, of all experts that it does."""
    experts = getattr(text, "num_experts_per_tok", None) or getattr(text, "top_k_experts", None) or 0
    of_experts = experts * (getattr(text, "moe_intermediate_size", None) or 0)
    shared = getattr(text, "shared_expert_intermediate_size", None) or getattr(text, "intermediate_size", None) or 0
    return of_experts + shared


def _training_activations(config, load: MemoryDemand, parameters: Parameters) -> float:
    text, vision = config.get_text_config(), config.vision_config
    tokens = load.rows * (load.prompt_tokens + load.completion_tokens)
    width = BYTES[load.dtype]
    layer = (LAYER_HIDDEN * text.hidden_size + LAYER_INTERMEDIATE * intermediate_size(text)) * tokens * width
    kept = (text.hidden_size * tokens * width if load.checkpointing else layer) * text.num_hidden_layers
    vision_width = getattr(vision, "embed_dim", None) or vision.hidden_size
    patches = load.rows * load.visual_tokens * patches_per_token(config)
    vision_layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    vision_kept = 0 if load.freeze_vision else patches * vision_width * width * vision_layers
    vision_layer = patches * vision_width * (LAYER_HIDDEN + 4 * LAYER_INTERMEDIATE) * width
    dequantised = 2 * parameters.largest_linear if load.four_bit else 0
    return kept + max(layer, vision_layer) + vision_kept + HEAD_TILE * 4 + dequantised


def values_kept(layer: Any, kind: str, tokens: int) -> int:
    """What a layer keeps of a row while it is generated: keys and values, or the states of linear attention.

    Args:
        layer: the configuration of the layer.
        kind: of its cache; "dummy" for one that reads the keys and values of an earlier layer.
    """
    if kind == "dummy":
        return 0
    if kind == "linear_attention":
        keys = layer.linear_num_key_heads * layer.linear_key_head_dim
        values = layer.linear_num_value_heads * layer.linear_value_head_dim
        return values * layer.linear_key_head_dim + (2 * keys + values) * layer.linear_conv_kernel_dim
    if kind == "sliding_attention":
        tokens = min(tokens, layer.sliding_window)
    head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
    return tokens * 2 * layer.num_key_value_heads * head_dim


def row_cache(text: Any, tokens: int) -> int:
    """Values that all layers of a language model keep of a row of so many tokens."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    kinds, _ = get_layer_types_and_kwargs(text)
    return sum(values_kept(*layer, tokens) for layer in zip(text.per_layer_config, kinds, strict=True))


def _longest_cache(config, load: MemoryDemand) -> int:
    """Values that all layers keep of the longest row with a whole completion."""
    return row_cache(config.get_text_config(), load.prompt_tokens + load.completion_tokens)


def _generation(config, load: MemoryDemand) -> float:
    text = config.get_text_config()
    cache = load.generated_rows * _longest_cache(config, load) * BYTES[load.dtype]
    prefill = load.generated_rows * load.prompt_tokens * (4 * text.hidden_size + 3 * intermediate_size(text))
    logits = load.generated_rows * text.vocab_size * 4 * 3
    return cache + prefill * BYTES[load.dtype] + logits


def _vllm(config, load: MemoryDemand, parameters: Parameters) -> float:
    """What vLLM cannot do without: its weights, and keys and values of one row."""
    return (parameters.total + _longest_cache(config, load)) * BYTES[load.vllm_dtype] / load.vllm_processes


def estimate_memory(config, load: MemoryDemand) -> dict[str, float]:
    """Bytes on each device, by what they are for; `peak` is their sum with the larger of training and generation.
    vLLM's least stands beside it.

    Args:
        config: of a vision-language model.
    """
    parameters = count_parameters(config)
    sharded = load.processes if load.zero_stage == 3 else 1
    adapter_widths = parameters.adapter_widths + (0 if load.freeze_vision else parameters.vision_adapter_widths)
    adapters = load.lora_rank * adapter_widths if load.lora_rank else 0
    frozen_vision = parameters.vision if load.freeze_vision else 0
    trainable = adapters or parameters.total - frozen_vision
    weights = _weights(parameters, load) / sharded + adapters * 4
    width = 4 if adapters else BYTES[load.dtype]  # adapters are kept in float32
    gradients = trainable * width / (load.processes if load.zero_stage >= 2 else 1)
    master = 4 if load.zero_stage and load.dtype != "float32" and not adapters else 0
    optimizer = trainable * (load.optimizer_bytes + master) / (load.processes if load.zero_stage else 1)
    if load.offload:
        weights, gradients, optimizer = 2 * parameters.largest_linear * 2, 0.0, 0.0
    parts = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "reference": _weights(parameters, load) / sharded if load.reference else 0.0,
        "training activations": _training_activations(config, load, parameters),
        "generation": 0.0 if load.vllm_share is not None else _generation(config, load),
        "overhead": DEVICE_OVERHEAD,
    }
    working = max(parts["training activations"], parts["generation"])
    static = sum(parts[name] for name in ("weights", "gradients", "optimizer", "reference", "overhead"))
    vllm = {} if load.vllm_share is None else {VLLM: _vllm(config, load, parameters)}
    return {**parts, "peak": (static + working) * FRAGMENTATION, **vllm}


def format_estimate(parts: dict[str, float], load: MemoryDemand) -> str:
    """The estimate as text."""
    lines = [f"memory estimate for each of {load.processes} device(s):"]
    lines += [f"  {name:<22}{size / 1e9:8.2f} GB" for name, size in parts.items() if name not in ("peak", VLLM)]
    lines.append(f"  {'peak':<22}{parts['peak'] / 1e9:8.2f} GB (training and generation take turns)")
    if load.vllm_share is not None:
        lines.append(
            f"  vLLM takes {100 * load.vllm_share:.0f}% of the device beside it; its weights and one row need "
            f"{parts[VLLM] / 1e9:.2f} GB"
        )
    return "\n".join(lines)


# -- of a recipe ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """How a run is spread over devices."""

    processes: int
    zero_stage: int
    offload: bool


def _launched_spread(args: Any) -> Spread:
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        return Spread(args.world_size, 0, False)
    return Spread(args.world_size, plugin.zero_stage, getattr(plugin, "offload_optimizer_device", None) == "cpu")


def planned_spread(path: str) -> Spread:
    """What a file of accelerate_configs/ would launch."""
    try:
        config = yaml.safe_load(shipped_file(path, ACCELERATE_CONFIGS).read_text(encoding="utf-8"))
        deepspeed = config.get("deepspeed_config") or {}
        offload = deepspeed.get("offload_optimizer_device") == "cpu"
        return Spread(config["num_processes"], deepspeed.get("zero_stage", 0), offload)
    except (OSError, yaml.YAMLError, AttributeError, KeyError) as error:
        raise RecipeError(f"accelerate_config: {path}: expected a file that accelerate can launch: {error}") from error


def base_load(arguments: DataArguments, args: Any, model_args: Any, counts: TokenCounts) -> MemoryDemand:
    """What a recipe asks of each device, as far as all methods have it in common."""
    planned = arguments.validate_only and arguments.accelerate_config is not None
    spread = planned_spread(arguments.accelerate_config) if planned else _launched_spread(args)
    eight_bit = "8bit" in str(args.optim).lower()
    return MemoryDemand(
        processes=spread.processes,
        zero_stage=spread.zero_stage,
        offload=spread.offload,
        dtype=model_args.dtype if model_args.dtype in ("bfloat16", "float16") else "float32",
        four_bit=bool(model_args.load_in_4bit),
        lora_rank=model_args.lora_r if model_args.use_peft else None,
        optimizer_bytes=2 if eight_bit else (4 if model_args.load_in_4bit else 8),
        freeze_vision=bool(getattr(args, "freeze_vision_tower", False)),
        rows=args.per_device_train_batch_size,
        prompt_tokens=counts.longest,
        visual_tokens=counts.images,
        checkpointing=bool(args.gradient_checkpointing),
    )


def say_estimate(config: Any, load: MemoryDemand) -> None:
    """Prints the memory estimate, where the model's configuration is known."""
    if config is None:
        say("memory estimate: not possible, the model's configuration is out of reach")
    elif PartialState().is_main_process:
        say(format_estimate(estimate_memory(config, load), load))
