"""Imports a pointer selector of the earlier system (Lever-Plus): v1, v2 or v3, a `.pt` or `.ckpt` file.

    python -m models.convert_selector --checkpoint results/rce_epoch5.pt --output_dir outputs/rce

Its checkpoints hold no configuration. Widths, layers and the history are read from the weights; the number of heads
leaves no trace in them, and is given. A weight that is not known here (other variants, encoders trained along) is an
error that lists all of them: nothing is left out in silence. Nothing but tensors and plain values is unpickled.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.candidates.torch_files import read_torch_file
from data.cli.arguments import UNNAMED, option
from data.cli.commands import command
from data.cli.locks import parse_and_hold
from data.cli.ranges import ABOVE_0, AT_LEAST_1
from models.errors import ModelError

STATE_KEYS = ("model_state_dict", "state_dict")
"""Where `.pt` files (RCE, GRPO) and `.ckpt` files (Lightning) keep their weights."""
ANCHOR = "cand_proj.weight"
"""A weight that all versions have; what stands before its name is the prefix of all."""
ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


def read_state(path: Path) -> tuple[dict, dict]:
    """Weights of a checkpoint without their prefix, and the plain values that were stored beside them.

    Raises:
        ValueError: not such a checkpoint.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a dictionary, found {type(content).__name__}")
    key = next((key for key in STATE_KEYS if key in content), None)
    state = content if key is None else content[key]
    if not isinstance(state, dict):
        raise ModelError(f"{path}: {key}: expected a dictionary, found {type(state).__name__}")
    plain = {name: value for name, value in content.items() if isinstance(value, (int, float, str))}
    return _without_prefix(path, state), {} if key is None else plain


def _without_prefix(path: Path, state: dict) -> dict:
    import torch

    anchors = [key for key in state if key == ANCHOR or key.endswith(f".{ANCHOR}")]
    if len(anchors) != 1:
        found = ", ".join(map(str, list(state)[:10])) or "nothing"
        raise ModelError(f"{path}: expected one weight named {ANCHOR}, found {len(anchors)} of them; it has {found}")
    prefix = anchors[0].removesuffix(ANCHOR)
    others = [key for key in state if not key.startswith(prefix)]
    if others:
        raise ModelError(f"{path}: weights outside of {prefix!r}, where the selector is: {', '.join(others)}")
    weights = {key.removeprefix(prefix): value for key, value in state.items()}
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ModelError(
                f"{path}: {prefix}{name}: expected a tensor of floating-point numbers, found {value!r:.80}"
            )
        if not value.isfinite().all():
            raise ModelError(f"{path}: {prefix}{name}: expected finite numbers, found NaN or infinite ones")
    return weights


def expected_shapes(hidden: int, width: int, layers: int, gate: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights of a selector."""
    shapes: dict[str, tuple[int, ...]] = {"query_proj.weight": (hidden, hidden), "cand_proj.weight": (hidden, hidden)}
    if width != hidden:
        shapes["input_proj.weight"] = (hidden, width)
    attention = dict(zip(ATTENTION, [(3 * hidden, hidden), (3 * hidden,), (hidden, hidden), (hidden,)], strict=True))
    for layer in range(layers):
        shapes |= {f"cross_attn_layers.{layer}.{name}": shape for name, shape in attention.items()}
        shapes |= {f"attn_norms.{layer}.{name}": (hidden,) for name in ("weight", "bias")}
    if gate:
        shapes |= {"query_update_gate.weight": (hidden, 2 * hidden), "query_update_gate.bias": (hidden,)}
    return shapes


def convert(path: Path, num_heads: int = 1, temperature: float = 0.1) -> tuple[Any, dict[str, Any]]:
    """The `PointerSelector` of a checkpoint, in float32 and eval mode, and the values stored beside its weights.

    Args:
        num_heads: of the attention; the earlier system's configurations have 1.
        temperature: of the softmax, which its checkpoints do not hold.

    Raises:
        ValueError: weights that are missing, unknown or of another shape; lists all of them.
    """
    from models.selectors.pointer import PointerSelector, PointerSelectorConfig

    weights, notes = read_state(path)
    hidden = weights[ANCHOR].shape[0]
    width = weights["input_proj.weight"].shape[-1] if "input_proj.weight" in weights else hidden
    numbers = [int(found[1]) for name in weights if (found := re.match(r"cross_attn_layers\.(\d+)\.", name))]
    gate = any(name.startswith("query_update_gate.") for name in weights)
    shapes = expected_shapes(hidden, width, max(numbers, default=-1) + 1, gate)
    problems = [f"unknown: {name}" for name in weights if name not in shapes]
    problems += [f"missing: {name}" for name in shapes if name not in weights]
    for name in shapes.keys() & weights.keys():
        shape = tuple(weights[name].shape)
        if shape != shapes[name]:
            problems.append(f"{name}: expected shape {shapes[name]}, found {shape}")
    if problems:
        raise ModelError(f"{path}: not a selector that can be imported: {'; '.join(sorted(problems))}")
    config = PointerSelectorConfig(
        embedding_size=width,
        hidden_size=hidden,
        num_heads=num_heads,
        num_layers=max(numbers, default=-1) + 1,
        history="gate" if gate else "none",
        temperature=temperature,
    )
    selector = PointerSelector(config)
    selector.load_state_dict({name: value.float() for name, value in weights.items()})
    return selector.eval(), notes


@dataclass(kw_only=True)
class ConvertSelectorArguments:
    """Which selector to convert, and what its weights do not tell."""

    checkpoint: Path = option(".pt or .ckpt file of the earlier system", old=(UNNAMED,))
    output_dir: Path = option("a folder that is not there yet, or empty")
    num_heads: int = option("of its attention", 1, within=AT_LEAST_1)
    temperature: float = option("of its softmax", 0.1, within=ABOVE_0)


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parse_and_hold(ConvertSelectorArguments, argv)
    folder = arguments.output_dir
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"--output_dir {folder}: exists and is not an empty folder")
    selector, notes = convert(arguments.checkpoint, arguments.num_heads, arguments.temperature)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        selector.save_pretrained(Path(made) / "selector")
        (Path(made) / "selector").replace(folder)
    config = selector.config
    stored = "".join(f", {name} {value}" for name, value in notes.items())
    print(
        f"{selector.num_parameters():,} parameters (width {config.embedding_size}, hidden size {config.hidden_size}, "
        f"{config.num_layers} layers, history {config.history}{stored}), written to {folder}"
    )


if __name__ == "__main__":
    main()
