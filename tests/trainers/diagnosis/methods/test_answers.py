"""The doctor of methods that sample nothing: what is planted in prompts, answers and labels is named."""

from typing import Any

import pytest
from stored_groups import write_completion_groups

from data.tasks import load_rows
from trainers.diagnosis import causes
from trainers.diagnosis.completions import check_closing
from trainers.diagnosis.methods.answers import Learned, answer_text, check_learned, diagnose_groups, diagnose_sft
from trainers.diagnosis.prompts import check_round_trip, rendered
from trainers.offline_grpo import OfflineGRPOConfig
from trainers.rce import RCEConfig
from trainers.setup.recipes import RecipeError

CPU = ("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_pixels", "1024")


def wrong(findings) -> set[causes.Cause | None]:
    return {finding.cause for finding in findings if finding.verdict == "wrong"}


@pytest.fixture
def sft(tiny_model, report_data, tmp_path) -> list[str]:
    given = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(report_data)]
    return [*given, "--output_dir", str(tmp_path / "run"), *CPU]


def test_a_sound_warm_start(sft):
    findings = list(diagnose_sft(sft, limit=2))
    assert [finding for finding in findings if finding.verdict != "ok"] == []
    assert len(findings) >= 9


def test_a_loss_of_whole_conversations(sft):
    assert wrong(diagnose_sft([*sft, "--completion_only_loss", "false"], limit=2)) == {causes.LABELS}


@pytest.fixture(scope="module")
def groups(tmp_path_factory, report_data):
    return write_completion_groups(tmp_path_factory.mktemp("groups"), load_rows(report_data, "train", [], limit=3))


@pytest.mark.parametrize(("method", "config"), [("RCE", RCEConfig), ("offline GRPO", OfflineGRPOConfig)])
def test_sound_groups(method, config, groups, tiny_model, tmp_path):
    words = ["--policy", "vlm", "--model_name_or_path", str(tiny_model), "--dataset_name", str(groups)]
    words += ["--output_dir", str(tmp_path / "run"), *CPU]
    findings = list(diagnose_groups(method, config, words, limit=2))
    assert [finding for finding in findings if finding.verdict != "ok"] == []


def test_a_selector_reads_no_prompts(tmp_path):
    words = ["--policy", "selector", "--dataset_name", "x", "--output_dir", str(tmp_path / "run"), *CPU[:6]]
    for findings in (diagnose_groups("RCE", RCEConfig, words, limit=2), diagnose_sft(words, limit=2)):
        with pytest.raises(RecipeError, match="policy: selector: .* expected vlm"):
            list(findings)


# -- planted in a batch -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(diagnosed) -> tuple[Any, Learned]:
    """A processor, and one row with its answer as an update should get it."""
    import torch

    trainer, rows = diagnosed()
    processor = trainer.processing_class
    row = {**rows[0], "gold": "yes"}
    prompt = rendered(processor, row, add_generation_prompt=True)
    inputs = processor(text=[prompt], images=row["images"], return_tensors="pt")
    answer = processor.tokenizer("yes<|im_end|>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    counted = torch.zeros_like(ids)
    counted[:, -answer.size(1) :] = 1
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")} | {"num_images": [1]}
    return processor, Learned(
        [row], ids, torch.ones_like(ids), counted, images, trainer.model.config, set(trainer.eos_token_ids)
    )


def planted(learned: Learned, **changes: Any) -> Learned:
    return Learned(**{**vars(learned), **changes})


def test_a_sound_row(learned):
    assert wrong(check_learned(learned[1], learned[0])) == set()


def test_labels_without_the_end_token(learned):
    processor, sound = learned
    counted = sound.counted.clone()
    counted[:, -1] = 0
    assert wrong(check_learned(planted(sound, counted=counted), processor)) == {causes.NO_END}


def test_shifted_labels(learned):
    processor, sound = learned
    found = wrong(check_learned(planted(sound, counted=sound.counted.roll(-1, dims=1)), processor))
    assert found & {causes.MASK, causes.NO_END, causes.LABELS}


def test_a_dropped_image(learned):
    processor, sound = learned
    assert causes.DROPPED_IMAGE in wrong(check_learned(planted(sound, images={"num_images": [0]}), processor))


@pytest.mark.parametrize(
    ("before", "expected"),
    [(": ", set()), (":\n", set()), (": It is ", {causes.NO_PREFIX}), (None, {causes.NO_PREFIX})],
)
def test_an_answer_may_follow_its_prompt_with_space_between(learned, before, expected):
    """Idefics3 and SmolVLM open an answer by `Assistant:`, and go on with ` yes`."""
    processor, row = learned[0], learned[1].rows[0]
    kept = processor.chat_template
    processor.chat_template = (
        "{% for turn in messages %}{{ turn['role'] + " + repr(before or ": ") + " }}{% for part in turn['content'] %}"
        "{{ part['text'] }}{% endfor %}<|im_end|>{% endfor %}{{ 'assistant" + ":" * bool(before) + "' if "
        "add_generation_prompt else '' }}"
    )
    try:
        if before is None:
            processor.chat_template = "{{ messages | length }}" + processor.chat_template
        finding = check_round_trip([row | {"images": []}], processor)
        assert {finding.cause} - {None} == expected
        if not expected:
            assert answer_text(processor, row | {"images": []}) == before[1:] + "yes"
            assert check_closing(row | {"images": []}, processor, {processor.tokenizer.eos_token_id}).verdict == "ok"
    finally:
        processor.chat_template = kept


def test_another_template(learned):
    processor, sound = learned
    ids = sound.ids.clone()
    ids[0, 1] = ids[0, 0]
    assert wrong(check_learned(planted(sound, ids=ids), processor)) == {causes.TEMPLATE}
