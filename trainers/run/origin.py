"""What a run was started from: settings, data and models by content, versions. A run goes on where they are the same.

The record stands in `run.json` of the output folder, which also says whether the run has finished, and in every
checkpoint: a checkpoint of another run is identified by it.
"""

import enum
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState

from data.cli.secrets import without_secrets
from data.io.digests import file_digest, rows_digest
from data.io.records import write_json
from data.reports.measurements import MEASUREMENTS_FILE
from models.run_folders import MODEL_FILES, RUN_FILE, model_fingerprint
from trainers.run.machine import versions
from trainers.setup.model import hub_arguments, reference_hub

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
SOURCES = (
    *("model_name_or_path", "reference_model", "backbone", "chat_template_path", "deepspeed"),
    *("query_table", "eval_query_table", "example_table", "query_data", "example_data", "task_data", "pools"),
)
"""Keys that name files, folders or models: identified by what they hold, wherever it lies."""
HOLDERS = ("reward_funcs", "agents", "selector", "model_init_kwargs", "backbone")
"""Keys whose mappings may name files or folders among their parameters."""
HARMLESS = frozenset(
    (
        # Where the data lies, and where results go; rows are identified by content.
        *("dataset_name", "eval_dataset_name", "output_dir", "logging_dir", "run_name", "own_folder"),
        "accelerate_config",
        # What is checked before anything starts, and how a run is resumed.
        *("validate_only", "max_prompt_length", "resume", "resume_from_checkpoint", "load_weights_only"),
        "max_sampling_difference",
        # What is logged, stored and published.
        *("report_to", "project", "trackio_space_id", "disable_tqdm", "log_level", "log_level_replica"),
        *("log_on_each_node", "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
        *("log_completions", "num_completions_to_print", "log_unique_prompts", "log_multimodal"),
        *("log_completions_hub_repo", "skip_memory_metrics", "save_total_limit", "save_only_model"),
        *("save_strategy", "save_steps", "save_on_each_node", "enable_jit_checkpoint"),
        *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
        "hub_revision",
        # How fast data and processes are.
        *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataset_num_proc", "local_rank", "ddp_timeout", "ddp_bucket_cap_mb"),
        *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout"),
        *("vllm_gpu_memory_utilization", "vllm_group_port"),
    )
)
"""Keys that cannot change what a run learns: they may be other ones when it is resumed, and hold at once."""
CHOOSE_THE_BEST = ("save_strategy", "save_steps", "save_total_limit")
"""Not harmless where the best checkpoint becomes the model: only stored ones can."""
LONGEST_SHOWN = 80


# -- the record -------------------------------------------------------------------------------------------------------


def run_origin(method: str, arguments: Sequence[Any], rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What a run starts from, as plain JSON without secrets.

    Args:
        method: name of the trainer.
        arguments: the dataclasses that the recipe was parsed into: of the data, the trainer and the model.
        rows: data by name, as it was loaded.
    """
    state = PartialState()
    settings = {key: value for part in arguments for key, value in _settings(part).items()}
    record = {
        "method": method,
        "settings": settings,
        "sources": {key: value for part in arguments for key, value in _sources(part, _revisions(*arguments))},
        "data": {name: {"rows": len(part), "sha256": rows_digest(part)} for name, part in rows.items()},
        "processes": state.num_processes,
        "distribution": _distribution(arguments),
        "versions": {package: found for package, found in versions().items() if package in PACKAGES},
    }
    return without_secrets(json.loads(json.dumps(record)))


def _distribution(arguments: Sequence[Any]) -> str:
    """How processes work together; on CPUs the state of a process does not know of DeepSpeed."""
    if any(getattr(part, "deepspeed_plugin", None) is not None for part in arguments):
        return "DEEPSPEED"
    found = PartialState().distributed_type
    return str(getattr(found, "value", found))


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set) else value)]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _default(item: Any) -> Any:
    if item.default is not MISSING:
        return _plain(item.default)
    return _plain(item.default_factory()) if item.default_factory is not MISSING else None


def _settings(arguments: Any) -> dict[str, Any]:
    """What differs from the defaults, but for what is harmless or identified by content."""
    left_out = HARMLESS | set(SOURCES)
    if getattr(arguments, "load_best_model_at_end", False):
        left_out -= set(CHOOSE_THE_BEST)
    return changed_settings(arguments, left_out)


def changed_settings(arguments: Any, left_out: Container[str] = ()) -> dict[str, Any]:
    """The settings of a dataclass that differ from its defaults, as JSON can hold them."""
    values = arguments.to_dict() if hasattr(arguments, "to_dict") else vars(arguments)
    named = [item for item in fields(arguments) if item.init and item.name in values and item.name not in left_out]
    found = {item.name: (_plain(values[item.name]), _default(item)) for item in named}
    return {name: value for name, (value, default) in found.items() if value != default}


def _revisions(script: Any, args: Any, model_args: Any) -> dict[str, str | None]:
    """Key -> the revision at which its model is read."""
    found = {"model_name_or_path": hub_arguments(args, model_args)["revision"]}
    if getattr(args, "reference_model", None) is not None:
        found["reference_model"] = reference_hub(args, model_args)["revision"]
    return found


def _sources(arguments: Any, revisions: Mapping[str, str | None]) -> Iterator[tuple[str, dict[str, str]]]:
    """(key, name and content) of every file, folder or model that the arguments name."""
    for key in SOURCES:
        value = getattr(arguments, key, None)
        if isinstance(value, str):
            yield key, {"name": value, "content": source_content(value, revisions.get(key))}
    for key in HOLDERS:
        for place, value in _strings_of_mappings(getattr(arguments, key, None), key):
            if Path(value).exists():
                yield place, {"name": value, "content": source_content(value)}


def _strings_of_mappings(value: Any, place: str, inside: bool = False) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings_of_mappings(item, f"{place}.{key}", True)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _strings_of_mappings(item, f"{place}.{number}", inside)
    elif isinstance(value, str) and inside:
        yield place, value


def source_content(name: str, revision: str | None = None) -> str:
    """A text that changes with what a file, a folder or a model of the Hub holds."""
    path = Path(name)
    if path.is_file():
        return file_digest(path)
    if path.is_dir():
        is_model = any((path / file).is_file() for file in MODEL_FILES)
        return model_fingerprint(name) if is_model else _folder_digest(path)
    return f"{name} at {hub_commit(name, revision)}"


def _folder_digest(folder: Path) -> str:
    """Of what a user put there, without what programs note down beside it: locks and measurements."""
    files = sorted(path for path in folder.rglob("[!.]*") if path.is_file() and path.name != MEASUREMENTS_FILE)
    return rows_digest([path.relative_to(folder).as_posix(), file_digest(path)] for path in files)


def hub_commit(name: str, revision: str | None) -> str:
    """The commit of a Hub model that is in the cache; its revision where it is not."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(name, file, revision=revision) for file in MODEL_FILES]
    except ValueError:  # no name of a Hub model
        found = []
    return next((Path(path).parent.name for path in found if isinstance(path, str)), revision or "main")


# -- what changed -----------------------------------------------------------------------------------------------------


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Key -> what it was and what it is now, for everything that differs between two records."""
    found = {}
    if old.get("method") != new["method"]:
        found["trainer"] = _was_and_is(old.get("method"), new["method"])
    for group, shown, same in (
        ("settings", _shown, lambda value: value),
        ("sources", _shown_source, lambda value: (value or {}).get("content")),
        ("data", _shown_rows, lambda value: (value or {}).get("sha256")),
        ("versions", _shown, lambda value: value),
    ):
        before, now = old.get(group) or {}, new[group]
        for key in dict.fromkeys([*before, *now]):
            if same(before.get(key)) != same(now.get(key)):
                found[f"{key} (data)" if group == "data" else key] = _was_and_is(
                    shown(before.get(key)), shown(now.get(key))
                )
    for key in ("processes", "distribution"):
        if old.get(key) != new[key]:
            found[key] = _was_and_is(old.get(key), new[key])
    return found


def _was_and_is(before: Any, now: Any) -> str:
    return f"was {before}, is {now}"


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " .."


def _shown_source(value: Mapping[str, str] | None) -> str:
    return "not set" if value is None else f"{_shown(value['name'])} (content {value['content'][:8]})"


def _shown_rows(value: Mapping[str, Any] | None) -> str:
    return "not read" if value is None else f"{value['rows']} rows (content {value['sha256'][:8]})"


# -- run.json ---------------------------------------------------------------------------------------------------------


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """The record of the run in a folder, or `None` where there is none that can be read."""
    try:
        content = json.loads((Path(folder) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("settings"), dict) else None


def write_run(folder: str | Path, record: Mapping[str, Any], **facts: Any) -> None:
    """Writes `run.json`.

    Args:
        facts: `finished`, the optimizer step at which the run ended.
    """
    write_json(Path(folder) / RUN_FILE, {**record, **facts})
