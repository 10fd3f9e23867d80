"""Tiny models of other families than Qwen2-VL, with random weights and processors of the real classes."""
