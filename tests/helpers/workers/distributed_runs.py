"""Runs of one worker (worker_main.py) on one process and on several, and what they gave."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from places import HELPER_FOLDERS, ROOT

STRATEGIES = ("ddp", "zero2", "zero3")
GRPO_BY_SGD = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "num_generations": 4,
    "max_completion_length": 12,
    "max_steps": 3,
    "report_to": "none",
    "save_strategy": "no",
    "remove_unused_columns": False,
    "logging_steps": 1,
    "disable_tqdm": True,
    "shuffle_dataset": False,
    "beta": 0.1,
    "optim": "sgd",
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "model_init_kwargs": {"dtype": "float32"},
}
"""Settings of GRPO for `distribution_worker.py`: steps whose figures do not depend on the order of sums."""


def deepspeed_config(strategy: str) -> dict | None:
    """Setting `deepspeed` of one of the `STRATEGIES`."""
    if strategy == "ddp":
        return None
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": int(strategy[-1]),
            "stage3_gather_16bit_weights_on_model_save": True,
            "stage3_param_persistence_threshold": 0,
        },
    }


def run_worker(
    worker: str,
    folder: Path,
    starts: Sequence[tuple[str, int]],
    settings: Callable[[Path, str, int], dict],
    run_warm: Callable,
) -> Callable[[str, int], tuple[dict, Path]]:
    """Starts a worker once, which trains with every strategy and number of processes in turn.

    Args:
        worker: name of its file, beside this one.
        starts: strategies and numbers of processes.
        settings: gives what the worker is told, from a folder of this start's own, strategy and processes.
        run_warm: the fixture.

    Returns:
        Function: strategy and processes -> what each of the worker's runs gave, and that folder.
    """
    files = []
    for strategy, processes in starts:
        own = folder / f"{strategy}_{processes}"
        own.mkdir(parents=True)
        told = {"processes": processes, "log": str(own / "log.txt"), "output": str(own / "figures.json")}
        files.append(own / "settings.json")
        files[-1].write_text(json.dumps(settings(own, strategy, processes) | told), encoding="utf-8")
    path = ":".join(map(str, (ROOT, *HELPER_FOLDERS)))
    done = run_warm(Path(__file__).with_name(worker), *files, PYTHONPATH=path, timeout=550)
    assert done.returncode == 0, done.stderr[-4000:]

    def figures(strategy: str, processes: int) -> tuple[dict, Path]:
        own = folder / f"{strategy}_{processes}"
        assert (own / "figures.json").is_file(), (own / "log.txt").read_text(encoding="utf-8")[-4000:]
        return json.loads((own / "figures.json").read_text(encoding="utf-8")), own

    return figures
