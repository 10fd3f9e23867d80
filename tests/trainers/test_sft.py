"""The warm start, as a command: it learns, saves, reports, resumes, and says clearly what is wrong."""

import json

import pytest
import torch
from evaluated import check_listed

RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
agents: [blur_filter, exposure_filter, resolution_filter, exact_duplicate_filter, text_length_filter, answer_consistency_filter]
max_pixels: 1024
output_dir: {output}
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 4
max_steps: 6
learning_rate: 3.0e-3
lr_scheduler_type: constant
logging_steps: 1
save_steps: 2
eval_strategy: steps
eval_steps: 3
report_to: none
disable_tqdm: true
"""  # noqa: E501


@pytest.fixture(scope="module")
def trained(tiny_model, report_data, tmp_path_factory, run_warm):
    folder = tmp_path_factory.mktemp("sft")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny_model, data=report_data, output=folder / "run"), encoding="utf-8")
    done = run_warm("trainers/sft.py", "--config", recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


def test_learns(trained):
    logged = json.loads((trained / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.5
    evaluations = [entry for entry in logged if "eval_loss" in entry]
    assert len(evaluations) == 2
    check_listed("SFT", evaluations[-1])


def test_leaves_model_recipe_report_and_card(trained, tiny_model):
    from models.families.loading import load_vlm

    model, _ = load_vlm(str(trained), device="cpu")
    original, _ = load_vlm(str(tiny_model), device="cpu")
    assert not torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)
    assert "learning_rate: 3.0e-3" in (trained / "recipe.yaml").read_text(encoding="utf-8")
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "token accuracy" in page
    assert "SFT" in (trained / "README.md").read_text(encoding="utf-8")


def test_only_the_answer_is_learned(tiny_model, task_rows, tmp_path):
    from models.families.loading import image_reader, load_processor
    from trainers.setup.task_data import to_dataset
    from trainers.sft import SFTConfig, SFTTrainer, with_completions

    processor = load_processor(str(tiny_model), max_pixels=1024)
    rows = with_completions(task_rows(), "data")
    args = SFTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=2,
        remove_unused_columns=False,
    )
    dataset = to_dataset(rows, image_reader(processor), ("prompt", "completion", "images"))
    trainer = SFTTrainer(str(tiny_model), args=args, train_dataset=dataset, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    for labels in batch["labels"]:
        learned = processor.tokenizer.decode(labels[labels != -100])
        assert learned.startswith("<selection>")
        assert learned.strip().endswith("<|im_end|>")


def test_cutting_images_is_refused(tmp_path):
    from trainers.sft import SFTConfig

    with pytest.raises(ValueError, match="max_length cuts images in two"):
        SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_length=64)


def test_rows_without_an_answer_are_refused():
    from data.io.records import RecordError
    from trainers.sft import with_completions

    with pytest.raises(RecordError, match="row 7: field 'completion': missing"):
        with_completions([{"id": 7, "prompt": [], "images": []}], "my_data")
