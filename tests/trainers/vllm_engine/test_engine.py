"""What the engine is given beside TRL's arguments: the trainer's precision, image sizes and numbers of images."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from models.families.loading import image_reader, load_processor
from trainers.setup.task_data import to_dataset
from trainers.vllm_engine.engine import engine_settings, most_images, vllm_load


def arguments(given=None, **precision):
    return SimpleNamespace(**{"vllm_kwargs": given, "bf16": False, "fp16": False, **precision})


@pytest.fixture(scope="module")
def processor(tiny_model):
    return load_processor(str(tiny_model), min_pixels=784, max_pixels=4704)


@pytest.mark.parametrize(
    ("precision", "weights", "expected"),
    [
        ({}, torch.float32, "float32"),
        ({}, torch.bfloat16, "bfloat16"),
        ({"bf16": True}, torch.float32, "bfloat16"),
        ({"fp16": True}, torch.float32, "float16"),
        ({}, "float32", "float32"),
    ],
)
def test_the_engine_computes_as_the_trainer_does(processor, precision, weights, expected):
    assert engine_settings(arguments(**precision), weights, processor)["dtype"] == expected


def test_images_are_sized_as_the_trainer_sizes_them(processor):
    found = engine_settings(arguments(), torch.float32, processor, images=2)
    assert found["mm_processor_kwargs"] == {"size": {"shortest_edge": 784, "longest_edge": 4704}}
    assert found["limit_mm_per_prompt"] == {"image": 2, "video": 0}
    assert engine_settings(arguments(), torch.float32, processor)["limit_mm_per_prompt"] == {"video": 0}


def test_the_recipe_has_the_last_word(processor):
    given = {
        "dtype": "float16",
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 5},
        "mm_processor_kwargs": {"do_rescale": True},
    }
    found = engine_settings(arguments(given), torch.float32, processor, images=2)
    size = {"shortest_edge": 784, "longest_edge": 4704}
    assert found == {
        "dtype": "float16",
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 5, "video": 0},
        "mm_processor_kwargs": {"size": size, "do_rescale": True},
    }
    assert given["limit_mm_per_prompt"] == {"image": 5}


def test_a_model_that_reads_texts_only(processor):
    assert engine_settings(arguments(), torch.float32, processor.tokenizer) == {"dtype": "float32"}


def test_images_of_a_data_set_are_counted_without_opening_them(processor):
    rows = [{"id": number, "images": ["missing.png"] * number} for number in (0, 2, 1)]
    dataset = to_dataset(rows, image_reader(processor))
    assert most_images([dataset, None]) == 2
    assert most_images([to_dataset(rows[:1], image_reader(processor)), {"a": dataset}]) == 2
    assert most_images([to_dataset([{"id": 1}], image_reader(processor))]) == 0
    assert most_images([dataset, Dataset.from_dict({"prompt": ["a"]})]) is None


def test_what_the_engine_adds_to_the_memory_estimate():
    engine = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    args = arguments(bf16=True, vllm_tensor_parallel_size=2, **engine)
    model_args = SimpleNamespace(dtype="float32")
    found = vllm_load(args, model_args)
    assert found == {"vllm_share": 0.3, "vllm_dtype": "bfloat16", "vllm_processes": 2}
    args.vllm_kwargs = {"dtype": "float32"}
    assert vllm_load(args, model_args)["vllm_dtype"] == "float32"
    args.vllm_mode = "server"
    assert vllm_load(args, model_args) == {}
