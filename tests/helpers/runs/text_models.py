"""Tiny models that read texts only, with the tiny model's tokenizer."""

import json
from pathlib import Path

import transformers


def write_text_model(folder: str | Path, tiny_model: Path, cls: str = "Qwen2ForCausalLM", **settings) -> str:
    """A folder that holds a random model of a class with Qwen2's settings, and its tokenizer.

    Args:
        settings: of its configuration, beside the sizes.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    config = transformers.Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **settings
    )  # fmt: skip
    getattr(transformers, cls)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stored = Path(folder) / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(stored.read_text()).items() if key != "processor_class"}
    stored.write_text(json.dumps(kept))
    return str(folder)
