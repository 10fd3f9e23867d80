"""Real vLLM on a CPU, in this process: `make test-vllm`. An engine takes a minute to start, so trainers share them."""

import importlib.util
import json
import os

import pytest

ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every engine of the machine would sit on its first core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What vLLM reads when it is imported."""


def pytest_collection_modifyitems(items):
    here = [item for item in items if item.path.is_relative_to(os.path.dirname(__file__))]
    for item in here:
        item.add_marker(pytest.mark.vllm)
        if importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not in this environment: make test-vllm"))


@pytest.fixture(scope="session", autouse=True)
def vllm_on_cpu():
    """vLLM whose weights can be replaced: for oneDNN it would pack them, and leave none to replace."""
    os.environ.update(ON_CPU)
    import vllm._custom_ops

    vllm._custom_ops._supports_onednn = False


@pytest.fixture(scope="session")
def engines():
    """The engines of this process by their options, and what each was asked for."""
    return {}


@pytest.fixture(autouse=True)
def shared_engines(engines, monkeypatch):
    """Trainers whose engines would be equal share one; each sends its weights before it samples."""
    from trainers.vllm_engine import rollouts

    engine_class = rollouts.engine_class

    def shared(processor):
        def engine(**options):
            model_apart = {name: value for name, value in options.items() if name not in ("model", "max_num_seqs")}
            key = json.dumps(model_apart, sort_keys=True, default=str)
            if key not in engines:
                engines[key] = engine_class(processor)(**options)
            return engines[key]

        return engine

    monkeypatch.setattr(rollouts, "engine_class", shared)
