"""The oracle of the earlier system's selector: 35 cases with weights, inputs, outputs, losses and gradients."""

import json
from dataclasses import dataclass
from functools import cache

import torch
from places import ORACLES
from safetensors.torch import load_file

from models.selectors.pointer import PointerSelector, PointerSelectorConfig

FOLDER = ORACLES


@dataclass(frozen=True)
class OracleCase:
    """One case.

    Attributes:
        config: shapes and settings of the losses (`label_smoothing`, `kl_beta`, ...).
        flags: where the reference's results are not to be reproduced: see the oracle's README.
        tensors: `w/<parameter>`, `in/<name>`, `out/<name>`, `grad_<loss>/<parameter>`.
    """

    id: str
    config: dict
    flags: tuple[str, ...]
    scalars: dict
    adamw_losses: dict[str, list[float]]
    tensors: dict[str, torch.Tensor]

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors below `prefix`: `part("w")` is a state dict, `part("grad_rce_T1.0")` gradients by parameter."""
        start = f"{prefix}/"
        return {name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)}

    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of `PointerSelector.forward`; every query has examples of its own."""
        candidates = self.tensors["in/cand_emb"]
        queries, width = candidates.shape[:2]
        return {
            "query_embeddings": self.tensors["in/query_emb"],
            "example_embeddings": candidates.flatten(0, 1),
            "pools": torch.arange(queries * width).view(queries, width),
            "pointers": self.tensors["in/beam_labels"].long(),
        }


@cache
def oracle_cases() -> tuple[OracleCase, ...]:
    """All public cases."""
    described = json.loads((FOLDER / "losses.public.json").read_text(encoding="utf-8"))["cases"]
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in load_file(FOLDER / "losses.public.safetensors").items():
        case, _, key = name.partition("/")
        tensors.setdefault(case, {})[key] = value
    return tuple(
        OracleCase(
            id=case["id"],
            config=case["config"],
            flags=tuple(case["flags"]),
            scalars=case["scalars"],
            adamw_losses=case["adamw_losses"],
            tensors=tensors[case["id"]],
        )
        for case in described
    )


def load_oracle_selector(case: OracleCase, **options) -> PointerSelector:
    """The selector of a case, with its weights, in eval mode. `options` replace fields of its configuration."""
    shape = {
        "embedding_size": case.config["d_model"],
        "hidden_size": case.config["hidden_dim"],
        "num_heads": case.config["num_heads"],
        "num_layers": case.config["num_layers"],
    }
    selector = PointerSelector(PointerSelectorConfig(**{**shape, **options}))
    selector.load_state_dict(case.part("w"))
    return selector.eval()
