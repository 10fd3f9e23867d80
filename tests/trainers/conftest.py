"""Small GRPO runs in the process of the test, on a CPU, with the tiny model."""

from collections.abc import Iterator

import pytest
from report_agents import AGENT_NAMES


def vowels(completions, **columns) -> list[float]:
    """A reward with contrast even for the gibberish of an untrained model: the share of vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


@pytest.fixture(autouse=True, scope="module")
def one_picture() -> Iterator[None]:
    """Reports show the loss alone, but in tests that take `all_pictures`: ten pictures take as long as most runs here.
    Module fixtures that draw all have a fixture of this name beside them."""
    from trainers.report import curves

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "PANELS", [panel for panel in curves.PANELS if panel.title == "loss"])
        yield


@pytest.fixture
def all_pictures(monkeypatch) -> None:
    """Reports show everything that was logged."""
    from trainers.report import curves, logged_figures

    monkeypatch.setattr(curves, "PANELS", logged_figures.PANELS)


@pytest.fixture(scope="session")
def task_rows(report_data):
    """Function: split -> rows of the small data set of reports."""
    from data.tasks import load_rows
    from filter_agents.registry import described_agents

    agents = described_agents(AGENT_NAMES)
    return lambda split="train": load_rows(report_data, split, agents)


@pytest.fixture
def make_grpo(tiny_family, task_rows, tmp_path):
    """Function: settings of `GRPOConfig` -> a trainer on 24 reports, 4 completions each, 8 of 12 tokens a step."""
    from models.families.loading import image_reader, load_processor
    from trainers.grpo import GRPOConfig, GRPOTrainer
    from trainers.setup.task_data import to_dataset

    def make(
        cls=GRPOTrainer,
        config_cls=GRPOConfig,
        rewards=vowels,
        rows=None,
        model=None,
        init=None,
        family="qwen2_vl",
        **settings,
    ):
        folder = str(tiny_family(family))
        processor = load_processor(folder, max_pixels=1024 if family.startswith("qwen") else None)
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
        dataset = to_dataset(rows, image_reader(processor))
        return cls(
            folder if model is None else model,
            reward_funcs=rewards,
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            **(init or {}),
        )

    return make


# -- stored groups ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pointer_groups(tmp_path_factory):
    """Folder of small groups of pointers, with their tables."""
    from stored_groups import write_pointer_groups

    return write_pointer_groups(tmp_path_factory.mktemp("pointers"), queries=18, shots=(1, 2))


@pytest.fixture(scope="session")
def completion_groups(tmp_path_factory, task_rows):
    """Folder of small groups of completions; the second has no image."""
    from stored_groups import write_completion_groups

    return write_completion_groups(tmp_path_factory.mktemp("completions"), task_rows()[:6], without_image=[1])


SETTINGS = {
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
}


@pytest.fixture
def make_selector_trainer(pointer_groups, tmp_path):
    """Function: trainer class, its configuration class and settings -> a trainer of a new selector."""
    from stored_groups import selector_trainer

    def make(cls, config_cls, groups=None, eval_groups=None, selector=None, model=None, shots=None, **settings):
        defaults = SETTINGS | {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2}
        args = config_cls(**{**defaults, "output_dir": str(tmp_path / "run"), **settings})
        return selector_trainer(pointer_groups, cls, args, groups, eval_groups, selector, model, shots)

    return make


@pytest.fixture
def make_vlm_trainer(tiny_family, completion_groups, tmp_path):
    """Function: trainer class, its configuration class and settings -> a trainer of the tiny model."""
    from stored_groups import vlm_trainer

    def make(cls, config_cls, groups=None, eval_groups=None, model=None, family="qwen2_vl", **settings):
        defaults = SETTINGS | {"per_device_train_batch_size": 3, "max_steps": 2, "learning_rate": 1e-3}
        args = config_cls(**{**defaults, "output_dir": str(tmp_path / "run"), **settings})
        return vlm_trainer(completion_groups, str(tiny_family(family)), cls, args, groups, eval_groups, model)

    return make
