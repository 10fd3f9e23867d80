"""Settings of runs with vLLM on a CPU. One process takes one engine, so tests that share one say these."""

EAGER = {"enforce_eager": True, "limit_mm_per_prompt": {"image": 2}, "skip_mm_profiling": True}
"""Options of an engine that starts in seconds: it compiles nothing, and tries no largest image."""
BY_VLLM = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.05, "vllm_max_model_length": 1024, "vllm_kwargs": EAGER}
