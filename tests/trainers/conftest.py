"""Small GRPO runs in the process of the test, on a CPU, with the tiny model."""

import pytest

AGENTS = [
    "blur_filter",
    "exposure_filter",
    "resolution_filter",
    "exact_duplicate_filter",
    "text_length_filter",
    "answer_consistency_filter",
]


def vowels(completions, **columns) -> list[float]:
    """A reward with contrast even for the gibberish of an untrained model: the share of vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


@pytest.fixture(scope="session")
def task_rows(report_data):
    """Function: split -> rows of the small data set of reports."""
    from data.tasks import load_rows
    from filter_agents.registry import build_agents

    agents = [(agent.name, agent.description) for agent in build_agents(AGENTS).values()]
    return lambda split="train": load_rows(report_data, split, agents)


@pytest.fixture
def make_grpo(tiny_model, task_rows, tmp_path):
    """Function: settings of `GRPOConfig` -> a trainer on 24 reports, 4 completions each, 8 of 12 tokens a step."""
    from models.loading import load_processor, pixel_bounds
    from trainers.grpo import GRPOConfig, GRPOTrainer
    from trainers.task_data import to_dataset

    def make(cls=GRPOTrainer, config_cls=GRPOConfig, rewards=vowels, rows=None, model=None, init=None, **settings):
        processor = load_processor(str(tiny_model), max_pixels=1024)
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "report_to": "none",
            "save_strategy": "no",
            "remove_unused_columns": False,
            "logging_steps": 1,
            "disable_tqdm": True,
            "model_init_kwargs": {"dtype": "float32"},
        }
        args = config_cls(**{**defaults, **settings})
        rows = task_rows() if rows is None else rows
        dataset = to_dataset(rows, pixel_bounds(processor))
        return cls(
            str(tiny_model) if model is None else model,
            reward_funcs=rewards,
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            **(init or {}),
        )

    return make
