"""A process that has imported what takes long, and runs programs in forks of itself, for `run_warm` of conftest.py.

Reads orders, JSON a line: arguments (of `python`: a script or -m and a module, and theirs), folder, environment,
processes, timeout, stdout and stderr (files). Answers each with a line, how the processes ended.
"""

import gc
import importlib
import json
import os
import runpy
import sys
from pathlib import Path

from forked_ranks import run_forked

ROOT = Path(__file__).parents[3]
TAKE_LONG = (
    *(f"trainers.{name}" for name in ("grpo", "sft", "rce", "offline_grpo", "reward", "factors")),
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "deepspeed",
)


def _read_hub_variables() -> None:
    """Lets huggingface_hub see what it read from variables when it was imported."""
    from huggingface_hub import constants, hf_api
    from transformers.utils import hub

    importlib.reload(constants)
    hf_api.api.endpoint = constants.ENDPOINT
    hub._hf_api = None


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """As `python` would run them."""
    os.chdir(folder)
    os.environ |= environment
    if any(name.startswith("HF_") for name in environment):
        _read_hub_variables()
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(":") if path]
    sys.orig_argv = [sys.executable, *arguments]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).absolute().parent))
    runpy.run_path(arguments[0], run_name="__main__")


def main() -> None:
    sys.path.insert(0, str(ROOT))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet when they are imported
    for module in TAKE_LONG:
        importlib.import_module(module)
    gc.freeze()  # looking through so many modules for garbage takes long, and copies their memory in each fork
    for line in sys.stdin:
        order = json.loads(line)
        statuses = run_forked(
            lambda order=order: _run(order["arguments"], order["folder"], order["environment"]),
            order["processes"],
            Path(order["stdout"]),
            Path(order["stderr"]),
            order["timeout"],
        )
        print(json.dumps(statuses), file=answers, flush=True)
    os._exit(0)  # taking down so many modules takes seconds too


if __name__ == "__main__":
    main()
