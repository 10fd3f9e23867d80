"""The reward trainer: its loss, its figures, what it saves, adapters, and the script."""

import json
import math
from dataclasses import replace

import pytest
import torch
from evaluated import check_listed
from peft import PeftModel
from preference_runs import settings, write_preferences, write_ranked
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig
from trl import ModelConfig

from data.preferences import load_preferences
from models.families.loading import load_processor
from models.families.vision_hooks import vision_tower
from models.reward.load import from_backbone, load_reward_model
from trainers.preferences.model import reward_adapters
from trainers.reward import RewardConfig, RewardTrainer, main
from trainers.run.origin import write_run
from trainers.run.output_folder import own_folder


@pytest.fixture(autouse=True)
def plain_four_bit_kernels(monkeypatch):
    """On CPUs with AVX-512 BF16, bitsandbytes packs the weights of a model in eval mode, and rounds its scales."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    return write_preferences(tmp_path_factory.mktemp("preferences") / "data")


@pytest.fixture
def make(tiny_model, preferences, tmp_path):
    """Function: settings of `RewardConfig` -> a trainer on 16 pairs."""

    def build(records=None, eval_records=None, model=None, init=None, samples=None, options=None, **changes):
        args = RewardConfig(**settings(output_dir=str(tmp_path / "run"), **changes))
        torch.manual_seed(0)
        if model is None:
            model = from_backbone(tiny_model, args.model_settings(), dtype=torch.float32, **(options or {}))
        records = load_preferences(preferences)[0] if records is None else records
        processor = load_processor(str(tiny_model), max_pixels=1024)
        extra = init or {}
        return RewardTrainer(model, args, None, records, eval_records, processor, samples=samples, **extra)

    return build


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def scores_of(model, records, processor) -> torch.Tensor:
    """(records, responses)."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    plain.processor = processor
    rows = [(record, text) for record in records for text in record.response]
    found = plain.score([row.prompt() for row, _ in rows], [row.images for row, _ in rows], [text for _, text in rows])
    return found.view(len(records), -1)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns_what_is_preferred(make, preferences):
    trainer = make(max_steps=40, per_device_train_batch_size=8, learning_rate=3e-3, lm_loss_weight=0.1)
    trainer.train()
    assert sum(logged(trainer, "accuracy")[-5:]) / 5 > 0.95
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0] - 0.5
    records = load_preferences(preferences)[0]
    scores = scores_of(trainer.model, records, trainer.processing_class)
    assert (scores[:, 1] > scores[:, 0]).float().mean() > 0.9


def batch_of(trainer) -> dict:
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


@pytest.mark.parametrize("loss_type", ["bradley_terry", "hinge"])
def test_the_loss_is_that_of_the_scores(make, loss_type):
    trainer = make(loss_type=loss_type, use_margin=True, center_rewards_coefficient=0.01, max_steps=1)
    batch = batch_of(trainer)
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    scores = outputs.logits.squeeze(1)
    each = []
    for number in range(4):
        right, wrong = scores[2 * number].item(), scores[2 * number + 1].item()  # pairs have the better one first
        gap = right - wrong - 0.5
        each.append(math.log(1 + math.exp(-gap)) if loss_type == "bradley_terry" else max(0.0, -gap))
        each[-1] += 0.01 * (right + wrong) ** 2
    assert loss.item() == pytest.approx(sum(each) / 4, abs=1e-6)


def test_a_records_own_margin_holds(make, preferences):
    records = [record.model_copy(update={"margin": 2.0}) for record in load_preferences(preferences)[0]]
    plain, wide = make(max_steps=1), make(records, max_steps=1)
    with torch.no_grad():
        first, second = (one.compute_loss(one.model, batch_of(one)).item() for one in (plain, wide))
    # Scores of a new head are nearly equal: -log sigmoid(0) and -log sigmoid(-2)
    assert first == pytest.approx(math.log(2), abs=0.1)
    assert second == pytest.approx(math.log(1 + math.exp(2)), abs=0.2)


def test_ranked_groups_are_scored_once_each(make, tmp_path):
    records = load_preferences(write_ranked(tmp_path / "ranked"))[0]
    trainer = make(records, loss_type="plackett_luce", max_steps=1)
    batch = batch_of(trainer)
    assert len(batch["input_ids"]) == 12
    assert batch["rows"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert len(batch["image_grid_thw"]) == 4
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    scores, expected = outputs.logits.squeeze(1), 0.0
    for number, ranks in enumerate(batch["ranks"].tolist()):
        of_group = scores[3 * number : 3 * number + 3].tolist()
        for score, rank in zip(of_group, ranks, strict=True):
            worse = [math.exp(other) for other, place in zip(of_group, ranks, strict=True) if place > rank]
            expected -= math.log(math.exp(score) / (math.exp(score) + sum(worse))) if worse else 0.0
    assert loss.item() == pytest.approx(expected / 4, abs=1e-5)


def test_more_than_two_responses_become_pairs(make, tmp_path):
    records = load_preferences(write_ranked(tmp_path / "ranked"))[0]
    assert len(make(records).train_records) == 3 + 3 + 3 + 2


def test_the_language_loss_is_added(make):
    trainer = make(lm_loss_weight=0.5, max_steps=1)
    batch = batch_of(trainer)
    learned = [trainer.processing_class.decode(row[row != -100]) for row in batch["labels"]]
    assert all(text.startswith("It is ") and text.endswith(".<|im_end|>") for text in learned[::2])
    assert all(text == "" for text in learned[1::2])
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        pairs = outputs.logits.view(4, 2)
    ranking = torch.nn.functional.softplus(pairs[:, 1] - pairs[:, 0]).mean()
    expected = ranking + 0.5 * outputs.language_losses.view(4, 2)[:, 0].mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["preference_loss"] + 0.5 * first["lm_loss"], abs=1e-4)


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_an_evaluation_are_those_of_all_its_pairs(make, preferences):
    records = load_preferences(preferences)[0][:7]  # batches of 4 and 3: a mean of means would be wrong
    trainer = make(eval_records=records, per_device_eval_batch_size=4, score_min=-0.05, score_max=0.05)
    found = trainer.evaluate()
    check_listed("reward", found)
    wrong, right = scores_of(trainer.model, records, trainer.processing_class).unbind(1)
    scores = torch.cat([wrong, right])
    assert found["eval_accuracy"] == pytest.approx((right > wrong).float().mean().item())
    assert found["eval_score_gap"] == pytest.approx((right - wrong).mean().item(), abs=1e-6)
    assert found["eval_score_mean"] == pytest.approx(scores.mean().item(), abs=1e-6)
    assert found["eval_score_std"] == pytest.approx(scores.std(correction=0).item(), abs=1e-6)
    assert found["eval_score_min"] == pytest.approx(scores.min().item(), abs=1e-6)
    assert found["eval_score_max"] == pytest.approx(scores.max().item(), abs=1e-6)
    near = (scores < -0.05 + 0.002) | (scores > 0.05 - 0.002)
    assert found["eval_saturation"] == pytest.approx(near.float().mean().item())
    expected = torch.nn.functional.softplus(wrong - right).mean().item()
    assert found["eval_preference_loss"] == pytest.approx(expected, abs=1e-5)


def test_equal_scores_are_ties_and_not_accurate(make, preferences):
    trainer = make(eval_records=load_preferences(preferences)[0])
    with torch.no_grad():
        trainer.model.score_head.out.weight.zero_()
    found = trainer.evaluate()
    assert (found["eval_accuracy"], found["eval_ties"]) == (0.0, 1.0)


def test_early_stopping_keeps_the_best_model(make, preferences, tmp_path):
    records = load_preferences(preferences)[0]
    trainer = make(
        eval_records=records,
        max_steps=30,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        early_stopping_patience=2,
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.state.best_global_step == 1
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]


# -- parts that are left as they are ----------------------------------------------------------------------------------


def changed(trainer) -> set[str]:
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {name for name, value in trainer.model.named_parameters() if not value.equal(before[name])}


def test_a_frozen_vision_tower_is_left_as_it_is(make):
    names = changed(make(freeze_vision_tower=True, max_steps=1))
    assert any("score_head" in name for name in names)
    assert any("language_model" in name for name in names)
    assert not any("visual" in name for name in names)
    assert any("visual" in name for name in changed(make(max_steps=1)))


NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
ADAPTERS = ModelConfig(use_peft=True, lora_r=4, lora_alpha=8, lora_dropout=0.0, lora_target_modules=["all-linear"])


@pytest.mark.parametrize("quantization", [None, NF4], ids=["lora", "qlora"])
def test_adapters_and_head_come_back_equal(make, preferences, tmp_path, quantization):
    options = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": "cpu"}}
    adapters = reward_adapters(ADAPTERS, freeze_vision_tower=False)
    trainer = make(
        init={"peft_config": adapters}, options=options, max_steps=2, learning_rate=1e-2, score_max=7.0,
        system_prompt="Judge.",
    )  # fmt: skip
    names = changed(trainer)
    assert names
    assert all("lora_" in name or "score_head" in name for name in names)
    assert sum("score_head" in name for name in names) == 4
    records = load_preferences(preferences)[0]
    expected = scores_of(trainer.model, records, trainer.processing_class)
    trainer.save_model(str(tmp_path / "saved"))
    assert {name for name in load_file(tmp_path / "saved" / "adapter_model.safetensors") if "score_head" in name}
    model, processor = load_reward_model(tmp_path / "saved", device="cpu", dtype=torch.float32)
    assert (model.config.score_max, model.config.system_prompt) == (7.0, "Judge.")
    found = scores_of(model, records, processor)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert expected.std() > 1e-3


def test_a_frozen_vision_tower_gets_no_adapters(make):
    trainer = make(init={"peft_config": reward_adapters(ADAPTERS, freeze_vision_tower=True)}, freeze_vision_tower=True)
    names = [name for name, _ in vision_tower(trainer.model).named_parameters()]
    assert not any("lora_" in name for name in names)
    assert not any("lora_" in name and "score_head" in name for name, _ in trainer.model.named_parameters())


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_margin": True, "margin": 10.0}, "margin: expected less than 10.0, the largest gap between scores"),
        ({"loss_type": "hinge", "margin": 2.0, "score_min": 0.0, "score_max": 2.0}, "margin: expected less than 2.0"),
        ({"unbounded": True, "score_max": 3.0}, "unbounded: score_min and score_max are bounds"),
        ({"score_min": 5.0}, r"score_min \(5.0\) must be below score_max \(5.0\)"),
        ({"loss_type": "plackett_luce", "use_margin": True}, "plackett_luce has no margin"),
        ({"lm_loss_weight": -1.0}, "lm_loss_weight: expected at least 0, found -1.0"),
        ({"early_stopping_patience": 0}, "early_stopping_patience: expected at least 1, found 0"),
        ({"loss_type": "elo"}, "loss_type: expected one of"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings(output_dir=str(tmp_path), eval_strategy="no", **changes))


def test_unbounded_scores_may_have_any_margin(tmp_path):
    args = RewardConfig(**settings(output_dir=str(tmp_path), unbounded=True, use_margin=True, margin=50.0))
    assert args.model_settings() == {"score_min": None, "score_max": None}


# -- the script -------------------------------------------------------------------------------------------------------

RECIPE = """\
model_name_or_path: {model}
dtype: float32
dataset_name: {data}
output_dir: {output}
max_pixels: 1024
use_cpu: true
bf16: false
gradient_checkpointing: false
per_device_train_batch_size: 4
max_steps: 4
learning_rate: 1.0e-3
logging_steps: 1
save_strategy: steps
save_steps: 2
eval_strategy: steps
eval_steps: 2
report_to: none
disable_tqdm: true
"""


@pytest.fixture
def run(tiny_model, preferences, tmp_path, capsys):
    """Function: settings -> (exit status, what was printed, the run's folders)."""

    def start(text: str = "", data=preferences, **changes):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=tiny_model, data=data, output=tmp_path / "run") + text, encoding="utf-8")
        argv = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
        try:
            main(["--config", str(recipe), *argv])
            status = 0
        except SystemExit as error:
            status = error.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err, sorted(tmp_path.glob("run*"))

    return start


def test_a_run_has_its_own_folder_with_everything(run, preferences, all_pictures):
    status, printed, folders = run(text="system_prompt: Judge the answer.\n")
    assert status == 0, printed
    assert len(folders) == 1
    folder = folders[0]
    assert folder.name.startswith("run_2")
    assert "train: 16 of 16 records used, 16 pairs" in printed
    assert "memory estimate" in printed
    model, _ = load_reward_model(folder, device="cpu")
    assert model.config.system_prompt == "Judge the answer."
    records = load_preferences(preferences)[0]
    rows = [(record.query, record.images, record.response[0]) for record in records]
    assert model.score(*zip(*rows, strict=True)).isfinite().all()
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in (
        "score gap",
        "saturated scores",
        "rank by people",
        ">chosen<",
        ">rejected<",
        "data:image/png",
        "what color is the shape?",
    ):
        assert part in page, part
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "load_reward_model" in card
    assert (folder / "recipe.yaml").is_file()


RECORD = {"method": "Reward", "settings": {"seed": 1}, "sources": {}, "data": {}, "versions": {}}
RECORD |= {"processes": 1, "distribution": "NO"}


def test_t01_another_run_gets_another_folder_and_the_same_one_its_own(tmp_path):
    def chosen(resume: bool = True, **changed) -> str:
        return own_folder(str(tmp_path / "run"), resume, lambda: RECORD | changed)

    def earlier(name: str, **facts) -> str:
        (tmp_path / name / "checkpoint-2").mkdir(parents=True)
        write_run(tmp_path / name, RECORD | facts)
        return str(tmp_path / name)

    new = str(tmp_path / "run_2")
    assert chosen().startswith(new)
    finished = earlier("run_20250101-000000", finished=2)
    assert chosen() == finished
    assert chosen(settings={"seed": 2}).startswith(new)
    assert chosen(resume=False) != finished
    unfinished = earlier("run_20250102-000000", settings={"seed": 2})
    assert chosen() == finished
    assert chosen(settings={"seed": 2}) == unfinished
    assert chosen(settings={"seed": 3}) == unfinished  # which says what differs


def test_t01_the_command_of_a_finished_run_changes_nothing(run, preferences):
    _, _, folders = run(max_steps="1", eval_strategy="no")
    before = {path: path.stat().st_mtime_ns for path in folders[0].rglob("*") if path.is_file()}
    status, printed, again = run(max_steps="1", eval_strategy="no")
    assert (status, again) == (0, folders), printed
    assert "already finished" in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_can_be_named(run, tmp_path):
    status, printed, folders = run(own_folder="false", eval_strategy="no")
    assert (status, folders) == (0, [tmp_path / "run"]), printed


def test_validate_only_leaves_nothing(run):
    status, printed, folders = run(validate_only="true")
    assert (status, folders) == (0, [])
    assert printed.splitlines()[-1] == "valid"


def test_weights_alone_are_taken_from_a_checkpoint(run, tmp_path):
    run(own_folder="false", eval_strategy="no")
    first = tmp_path / "run"
    status, printed, folders = run(
        own_folder="false",
        output_dir=tmp_path / "run2",
        eval_strategy="no",
        resume_from_checkpoint=first / "checkpoint-2",
        load_weights_only="true",
        max_steps=1,
        learning_rate=0.0,
    )
    assert status == 0, printed
    state = json.loads((tmp_path / "run2" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 1  # the schedule starts anew
    expected, found = (load_file(path / "model.safetensors") for path in (first / "checkpoint-2", tmp_path / "run2"))
    assert all(expected[name].equal(found[name]) for name in expected)
    last = load_file(first / "model.safetensors")
    assert not all(last[name].equal(found[name]) for name in found)


def test_training_goes_on_from_adapters(run, tmp_path):
    text = (
        "use_peft: true\nlora_r: 4\nlora_target_modules: [all-linear]\nfreeze_vision_tower: true\nown_folder: false\n"
    )
    status, printed, _ = run(text=text, eval_strategy="no")
    assert status == 0, printed
    again = {"model_name_or_path": tmp_path / "run", "output_dir": tmp_path / "run2", "learning_rate": 0.0}
    status, printed, _ = run(text=text, eval_strategy="no", **again)
    assert status == 0, printed
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("run", "run2"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_rows_that_are_too_long_are_an_error_or_skipped(run, preferences, tmp_path):
    longer = tmp_path / "longer"
    write_preferences(longer)
    row = {"id": "far", "query": "why? " * 300, "response": ["a", "b"], "human_ranking": [0, 1]}
    with (longer / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    status, printed, _ = run(data=longer, max_length=200, validate_only="true")
    assert status == 1
    assert "row 'far': the prompt has" in printed
    assert "expected at most 200 (max_length, response included)" in printed
    status, printed, _ = run(data=longer, max_length=200, skip_bad_rows="true", validate_only="true")
    assert status == 0
    assert "too long and skipped: 1" in printed


def test_bad_rows_stop_a_run_before_it_starts(run, tmp_path):
    broken = write_preferences(tmp_path / "broken")
    (broken / "red.png").write_bytes(b"")
    status, printed, folders = run(data=broken)
    assert (status, folders) == (1, [])
    assert "train.jsonl:1: field 'images'" in printed
    status, printed, folders = run(data=broken, skip_bad_rows="true", max_steps=1)
    assert status == 0, printed
    assert "bad rows skipped: 4" in printed


def test_a_wrong_model_is_named(run, tmp_path):
    status, printed, _ = run(model_name_or_path=tmp_path / "nothing")
    assert status == 1
    assert "model_name_or_path" in printed
    assert "nothing" in printed


def test_the_memory_estimate_of_a_published_model(run):
    status, printed, _ = run(model_name_or_path="Qwen/Qwen2-VL-2B-Instruct", validate_only="true")
    assert status == 0, printed
    assert "upper bound" in printed
    assert "GB" in printed


def test_adapters_leave_the_head_to_be_trained_in_full():
    config = reward_adapters(replace(ADAPTERS), freeze_vision_tower=True)
    assert config.modules_to_save == ["score_head"]
    assert reward_adapters(ModelConfig(), freeze_vision_tower=True) is None
