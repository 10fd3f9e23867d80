"""The doctor of reward models: prompts, images and responses as the model reads them."""

from preference_runs import write_preferences

from models.families.loading import load_processor
from trainers.diagnosis import causes
from trainers.diagnosis.methods.answers import check_learned
from trainers.diagnosis.methods.preferences import diagnose_reward, learned_of

CPU = ("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_pixels", "1024")


def test_a_sound_recipe(tiny_model, tmp_path):
    words = ["--model_name_or_path", str(tiny_model), "--dataset_name", str(write_preferences(tmp_path / "data"))]
    findings = list(diagnose_reward([*words, "--output_dir", str(tmp_path / "run"), *CPU], limit=3))
    assert [finding for finding in findings if finding.verdict != "ok"] == []
    assert len(findings) >= 7


def test_a_response_without_its_end_token(tiny_model):
    processor = load_processor(str(tiny_model), max_pixels=1024)
    row = {"id": 1, "prompt": [{"role": "user", "content": "red or blue?"}], "images": [], "gold": "red"}
    text = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) + "red"
    inputs = processor(text=[text], return_tensors="pt")
    findings = check_learned(learned_of([row], inputs, processor, None, {processor.tokenizer.eos_token_id}), processor)
    assert {finding.cause for finding in findings if finding.verdict == "wrong"} == {causes.NO_END}
