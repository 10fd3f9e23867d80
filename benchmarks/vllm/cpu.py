"""vLLM's build for a CPU, set up so that a trainer can send it weights."""

import os

EAGER = {"enforce_eager": True, "limit_mm_per_prompt": {"image": 1}, "skip_mm_profiling": True}
"""Options of an engine that starts in seconds: it compiles nothing, and tries no largest image."""


def prepare(gigabytes: int = 2) -> None:
    """To be called before anything imports vLLM.

    Args:
        gigabytes: for keys and values.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(gigabytes))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # both sides on the same cores
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm._custom_ops

    vllm._custom_ops._supports_onednn = False  # which packs weights, so that none can be replaced
