"""What an upgrade of trl, transformers or torch may take away without a word: every private name that is used.

The first test holds the list against the installed libraries. The second reads the source of the project and finds
what the list lacks, the third what it no longer needs.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache

import pytest
import transformers
import trl
from places import ROOT

PACKAGES = ("data", "models", "rewards", "filter_agents", "rollouts", "trainers")
LIBRARIES = ("trl", "transformers", "torch", "accelerate", "peft", "datasets", "deepspeed")
UNDOCUMENTED = (
    "trl.generation",
    "trl.trainer.utils",
    "transformers.conversion_mapping",
    "transformers.integrations.deepspeed",
)
"""Modules of libraries whose names are theirs to change."""
ATTRIBUTE = "attribute"
"""Stands for an attribute that the library sets on its instances or classes."""

PRIVATE_NAMES = {
    "torch.Tensor._make_subclass": ATTRIBUTE,
    "torch.nn.Module._compiled_call_impl": ATTRIBUTE,
    "torch.nn.Module._forward_hooks": ATTRIBUTE,
    "torch.nn.Module._forward_pre_hooks": ATTRIBUTE,
    "torch.nn.modules.batchnorm._BatchNorm": ATTRIBUTE,
    "torch.nn.modules.dropout._DropoutNd": ATTRIBUTE,
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu": ATTRIBUTE,
    "torch.optim.lr_scheduler.LRScheduler._last_lr": ATTRIBUTE,
    "transformers.GenerationMixin._sample": (
        "(self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, "
        "**model_kwargs)"
    ),
    "transformers.PreTrainedConfig._attn_implementation": ATTRIBUTE,
    "transformers.PreTrainedModel._init_weights": "(self, module)",
    "transformers.PreTrainedModel._tied_weights_keys": ATTRIBUTE,
    "transformers.Trainer._finish_current_push": "(self)",
    "transformers.Trainer._globalstep_last_logged": ATTRIBUTE,
    "transformers.Trainer._get_grad_norm": "(self, model, grad_norm)",
    "transformers.Trainer._get_num_items_in_batch": "(self, batch_samples, device)",
    "transformers.Trainer._get_output_dir": "(self, trial)",
    "transformers.Trainer._load_best_model": "(self)",
    "transformers.Trainer._load_from_checkpoint": "(self, resume_from_checkpoint, model)",
    "transformers.Trainer._load_optimizer_and_scheduler": "(self, checkpoint)",
    "transformers.Trainer._run_epoch": (
        "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
        "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, steps_trained_in_current_epoch)"
    ),
    "transformers.Trainer._push_from_checkpoint": "(self, checkpoint_folder)",
    "transformers.Trainer._save": "(self, output_dir, state_dict)",
    "transformers.Trainer._save_checkpoint": "(self, model, trial)",
    "transformers.Trainer._total_loss_scalar": ATTRIBUTE,
    "transformers.Trainer._tr_loss": ATTRIBUTE,
    "transformers.conversion_mapping.get_checkpoint_conversion_mapping": "(model_type)",
    "transformers.conversion_mapping.register_checkpoint_conversion_mapping": (
        "(model_type_or_class_name, mapping, overwrite)"
    ),
    "transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref": ATTRIBUTE,
    "transformers.integrations.deepspeed.deepspeed_config": "()",
    "transformers.integrations.deepspeed.is_deepspeed_zero3_enabled": "()",
    "trl.GRPOTrainer._buffered_inputs": ATTRIBUTE,
    "trl.GRPOTrainer._calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "trl.GRPOTrainer._compute_loss": "(self, model, inputs)",
    "trl.GRPOTrainer._generate": "(self, prompts)",
    "trl.GRPOTrainer._generate_and_score_completions": "(self, inputs)",
    "trl.GRPOTrainer._generate_single_turn": (
        "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images)"
    ),
    "trl.GRPOTrainer._get_eval_sampler": "(self, eval_dataset)",
    "trl.GRPOTrainer._get_per_token_logps_and_entropies": (
        "(self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, "
        "compute_aux_loss, pixel_values, image_grid_thw, num_images, pixel_attention_mask, spatial_shapes, "
        "num_tiles, image_sizes, token_type_ids, mm_token_type_ids, image_position_ids)"
    ),
    "trl.GRPOTrainer._get_train_sampler": "(self, dataset)",
    "trl.GRPOTrainer._logs": ATTRIBUTE,
    "trl.GRPOTrainer._metrics": ATTRIBUTE,
    "trl.GRPOTrainer._prepare_inputs": "(self, generation_batch)",
    "trl.GRPOTrainer._save_checkpoint": "(self, model, trial)",
    "trl.GRPOTrainer._step": ATTRIBUTE,
    "trl.GRPOTrainer._tokenize_prompts": "(self, prompts)",
    "trl.RewardTrainer._metrics": ATTRIBUTE,
    "trl.RewardTrainer._prepare_dataset": "(self, dataset, processing_class, args, dataset_name)",
    "trl.RewardTrainer._total_train_tokens": ATTRIBUTE,
    "trl.generation.vllm_generation": ATTRIBUTE,
    "trl.trainer.utils.add_fused_lm_head": "(model, temperature, cast_lm_head_to_fp32, outputs)",
    "trl.trainer.utils.create_model_from_path": "(model_id, architecture, **kwargs)",
    "trl.trainer.utils.split_pixel_values_by_grid": "(batch)",
    "trl.trainer.utils.unsplit_pixel_values_by_grid": "(batch)",
}
"""Private name -> its parameters. A name without an underscore comes from a module of `UNDOCUMENTED`."""

BASES = (
    trl.GRPOTrainer,
    trl.SFTTrainer,
    trl.RewardTrainer,
    transformers.Trainer,
    transformers.PreTrainedModel,
    transformers.PreTrainedConfig,
)
"""Library classes that classes of the project extend: a private name of theirs on `self` is theirs, not ours."""


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _assigned_in(cls: type) -> set[str]:
    """Private attributes that a class and its bases assign to `self`, as far as their source can be read."""
    sources = [inspect.getsource(base) for base in cls.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
    return {name for source in sources for name in re.findall(r"\bself\.(_\w+)(?:\s*:[^=\n]+)?\s*=[^=]", source)}


@cache
def _of_bases() -> frozenset[str]:
    return frozenset(name for base in BASES for name in {*dir(base), *_assigned_in(base)} if _private(name))


def _resolve(path: str) -> tuple[object, str]:
    """The module or class that holds a dotted name, and the name's last part."""
    *parents, name = path.split(".")
    for cut in range(len(parents), 0, -1):
        try:
            found = importlib.import_module(".".join(parents[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parents[cut:]:
            found = getattr(found, part)
        return found, name
    raise ModuleNotFoundError(path)


def _signature(function: object) -> str:
    """Parameter names, with their stars, as in `(self, model, *args)`."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(function).parameters.values()
    return "(" + ", ".join(stars.get(parameter.kind, "") + parameter.name for parameter in parameters) + ")"


def _found(path: str, expected: str) -> str:
    """What the installed library has under a name, in the terms of `PRIVATE_NAMES`."""
    try:
        holder, name = _resolve(path)
    except (ModuleNotFoundError, AttributeError):
        return "nothing"
    if expected == ATTRIBUTE:
        named = hasattr(holder, name) or name in getattr(holder, "__annotations__", {})
        there = named or (inspect.isclass(holder) and name in _assigned_in(holder))
        return ATTRIBUTE if there else "nothing"
    return _signature(getattr(holder, name)) if hasattr(holder, name) else "nothing"


def test_installed_libraries_have_every_private_name_as_it_is_used():
    changed = [
        f"{path}: expected {expected}, found {found}"
        for path, expected in PRIVATE_NAMES.items()
        if (found := _found(path, expected)) != expected
    ]
    assert not changed, "\n".join(["these private names changed:", *changed])


# -- the project's source ---------------------------------------------------------------------------------------------


@cache
def _trees() -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@cache
def _own_names() -> frozenset[str]:
    """Private names that the project itself defines, attributes of `self` included."""
    names = set()
    for tree in _trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                names.add(node.attr)
    return frozenset(filter(_private, names))


def _names_of(node: ast.AST) -> Iterator[str]:
    """Private or undocumented library names that one node of a syntax tree uses or overrides."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
        undocumented = node.module in UNDOCUMENTED
        yield from (alias.name for alias in node.names if undocumented or _private(alias.name))
    elif isinstance(node, ast.Attribute) and _private(node.attr):
        if node.attr in _of_bases() or node.attr not in _own_names():
            yield node.attr
    elif isinstance(node, ast.ClassDef):
        members = (item.name for item in node.body if isinstance(item, ast.FunctionDef))
        yield from (name for name in members if _private(name) and name in _of_bases())


@cache
def _uses() -> dict[str, str]:
    """Library name -> the first place where the project uses it."""
    uses: dict[str, str] = {}
    for path, tree in _trees().items():
        for node in ast.walk(tree):
            for name in _names_of(node):
                uses.setdefault(name, f"{path}:{node.lineno}")
    return uses


NOT_OF_THESE_LIBRARIES = {"_exit", "_ActionsContainer", "_supports_onednn"}
"""`os._exit`, the type of `argparse` for parsers and their groups, and of vLLM what every test of tests/vllm needs."""


def _listed() -> set[str]:
    return {path.rpartition(".")[2] for path in PRIVATE_NAMES}


def test_every_private_name_in_use_is_listed():
    missing = [f"{place}: {name}" for name, place in _uses().items() if name not in _listed() | NOT_OF_THESE_LIBRARIES]
    assert not missing, "\n".join(["not in PRIVATE_NAMES:", *missing])


def test_every_listed_name_is_in_use():
    assert sorted(_listed() - set(_uses())) == []


@pytest.mark.parametrize(
    ("path", "expected", "found"),
    [
        ("trl.GRPOTrainer._generate", "(self, prompt)", "(self, prompts)"),
        ("trl.GRPOTrainer._no_such_method", "(self)", "nothing"),
        ("trl.GRPOTrainer._no_such_attribute", ATTRIBUTE, "nothing"),
        ("trl.no_such_module._name", ATTRIBUTE, "nothing"),
    ],
)
def test_a_change_is_found(path, expected, found):
    assert _found(path, expected) == found
