"""The reward trainer on other families than Qwen2-VL: from a folder to scores, with shared prompts and adapters."""

import json
from pathlib import Path

import pytest
import torch
from preference_runs import settings, write_preferences, write_ranked
from transformers import BitsAndBytesConfig
from trl import ModelConfig

from data.io.records import RecordError
from data.preferences import load_preferences
from models.reward.load import load_reward_model
from rewards import reward_bench
from rewards.reward_model import RewardModel
from trainers.preferences.model import reward_adapters
from trainers.reward import RewardConfig, RewardTrainer, main

OTHERS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_5", "gemma3", "gemma4", "internvl", "idefics3")
]
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
LORA = ModelConfig(use_peft=True, lora_r=4, lora_dropout=0.0)


@pytest.fixture(autouse=True)
def plain_four_bit_kernels(monkeypatch):
    """On CPUs with AVX-512 BF16, bitsandbytes packs the weights of a model in eval mode, and rounds its scales."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def trained(folder: Path, records, tmp_path: Path, options: dict | None = None, **changes) -> RewardTrainer:
    changes = {"shared_prefix": True, "shared_prefix_check": True, "learning_rate": 1e-2, **changes}
    args = RewardConfig(**settings(output_dir=str(tmp_path / "run"), **changes))
    trainer = RewardTrainer(str(folder), args, train_dataset=records, **(options or {}))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    expected = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert changed <= expected
    assert len(changed) > 0.9 * len(expected)  # a bias of keys, and what all images have in common, need not move
    trainer.save_model(str(tmp_path / "saved"))
    return trainer


def scores_of(model, records) -> torch.Tensor:
    plain = model.get_base_model() if hasattr(model, "peft_config") else model
    rows = [(record, text) for record in records for text in record.response]
    return plain.score(
        [row.prompt() for row, _ in rows], [row.images for row, _ in rows], [text for _, text in rows], batch_size=8
    )


def check_saved(trainer: RewardTrainer, records, folder: Path) -> torch.Tensor:
    """What was saved scores as what was trained."""
    loaded, processor = load_reward_model(folder, device="cpu", dtype=torch.float32)
    trainer._plain_model().processor = processor
    expected = scores_of(trainer.model, records)
    torch.testing.assert_close(scores_of(loaded, records), expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-3
    return expected


@pytest.mark.parametrize("field", ["query", "response"])
def test_tokens_for_images_in_texts_are_named_before_anything_is_loaded(tiny_family, tmp_path, capsys, field):
    data = write_preferences(tmp_path / "data")
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[2][field] = "what <start_of_image>" if field == "query" else ["red", "blue <start_of_image>"]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {**settings(output_dir=str(tmp_path / "run")), "eval_strategy": "no"}
    words = [
        "--model_name_or_path",
        str(tiny_family("gemma3")),
        "--dataset_name",
        str(data),
        "--validate_only",
        "true",
    ]
    words += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--output_dir", options["output_dir"]]
    expected = f"{data}: row 2: field '{field}': the text contains <start_of_image>, which promises an image"
    with pytest.raises(SystemExit):
        main(words)
    assert expected in capsys.readouterr().err
    main([*words, "--skip_bad_rows", "true"])
    assert "with tokens of images and skipped: 1" in capsys.readouterr().out
    records, _ = load_preferences(str(data), "train")
    with pytest.raises(RecordError, match="row 2: field '" + field):
        RewardTrainer(str(tiny_family("gemma3")), RewardConfig(**options), train_dataset=records)


@pytest.mark.parametrize("family", ["qwen3_vl", *OTHERS])
def test_from_a_folder_to_scores(tiny_family, tmp_path, family):
    """Rows with and without an image; scores by the model, by the evaluation and by the reward are the same."""
    data = write_preferences(tmp_path / "data", rows=8, without_image=(1, 6))
    records = load_preferences(data)[0]
    trainer = trained(tiny_family(family), records, tmp_path, lm_loss_weight=0.5)
    expected = check_saved(trainer, records, tmp_path / "saved")

    arguments = ["--model", str(tmp_path / "saved"), "--dataset_name", str(data / "train.jsonl"), "--device", "cpu"]
    reward_bench.main([*arguments, "--output_dir", str(tmp_path / "bench")])
    [scores] = (tmp_path / "bench").glob("saved_*.jsonl")
    found = [json.loads(line)["score"] for line in scores.read_text(encoding="utf-8").splitlines()]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)

    reward = RewardModel(str(tmp_path / "saved"), device="cpu")
    images = [record.images for record in records]
    special = reward._loaded.processor.tokenizer.eos_token
    found = reward([f"{record.response[0]}{special}" for record in records], [one.query for one in records], images)
    plain = reward([f"{record.response[0]} " for record in records], [one.query for one in records], images)
    assert found == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("family", ["qwen3_vl", *OTHERS])
def test_ranked_groups_teach_the_same_with_shared_prompts(tiny_family, tmp_path, family):
    records = load_preferences(write_ranked(tmp_path / "data"))[0]
    options = {"loss_type": "plackett_luce", "max_steps": 2, "optim": "sgd", "learning_rate": 0.1}
    shared, plain = (
        trained(tiny_family(family), records, tmp_path / str(mode), shared_prefix=mode, **options)
        for mode in (True, False)
    )
    pairs = zip(shared.model.named_parameters(), plain.model.named_parameters(), strict=True)
    furthest = max((one - other).abs().max().item() for (_, one), (_, other) in pairs)
    assert furthest < 1e-5


@pytest.mark.parametrize(
    "quantization", [pytest.param(None, marks=pytest.mark.slow, id="lora"), pytest.param(NF4, id="qlora")]
)
@pytest.mark.parametrize("family", ["qwen3_vl", *OTHERS])
def test_adapters_and_head_come_back_equal(tiny_family, tmp_path, family, quantization):
    records = load_preferences(write_preferences(tmp_path / "data", rows=4))[0]
    options = {"peft_config": reward_adapters(LORA, freeze_vision_tower=False)}
    if quantization is not None:
        options["quantization_config"] = quantization
    trainer = trained(tiny_family(family), records, tmp_path, options, max_steps=2)
    names = [name for name, value in trainer.model.named_parameters() if value.requires_grad]
    assert all("lora_" in name or "score_head" in name for name in names)
    check_saved(trainer, records, tmp_path / "saved")
