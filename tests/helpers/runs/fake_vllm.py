"""A module `vllm` as far as recipes are checked by it, for environments without vLLM."""

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

from packaging.version import Version


@dataclass
class EngineArgs:
    model: str = ""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    enforce_eager: bool = False
    max_num_seqs: int | None = None
    quantization: Literal["fp8"] | str | None = None
    limit_mm_per_prompt: dict[str, int] | None = None
    speculative_config: dict[str, Any] | None = None


class SamplingParams:
    seed: int
    bad_words: list[str]


def install_fake_vllm(monkeypatch, version: str = "0.24.0", transformers: str = "5.21.0", device: str = "cpu"):
    """From now on vLLM seems to be installed, on a machine with a device of its own; "" is one that it cannot use."""
    from trainers.vllm_engine import versions

    platform = SimpleNamespace(
        device_type=device,
        is_unspecified=lambda: not device,
        is_cpu=lambda: device == "cpu",
        is_sleep_mode_available=lambda: device == "cuda",
    )
    members = {
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.platforms": {"current_platform": platform},
        "vllm.engine": {},
        "vllm.engine.arg_utils": {"EngineArgs": EngineArgs},
    }
    for name, content in members.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    found = {"vllm": version, "transformers": transformers, "trl": "1.16.0"}
    monkeypatch.setattr(versions, "installed", lambda name: Version(found[name]) if name in found else None)
