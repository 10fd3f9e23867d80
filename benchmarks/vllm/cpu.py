"""vLLM's build for a CPU, beside what it is compared with."""

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # both sides on the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What vLLM reads when it is imported."""
EAGER = {"enforce_eager": True, "limit_mm_per_prompt": {"image": 1}, "skip_mm_profiling": True}
"""Options of an engine that starts in seconds: it compiles nothing, and tries no largest image."""
