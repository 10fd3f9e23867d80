"""The RCE trainer, on which others for stored groups build: what moves, the loss, evaluation, and the command."""

import pytest
import torch
import yaml
from stored_groups import POINTERS, write_groups
from torch.nn.functional import cross_entropy

from data.candidate_groups import Candidate
from models.families.vision_hooks import vision_tower
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import StoredGroup, load_stored_groups
from trainers.losses import rce_loss
from trainers.rce import RCEConfig, RCETrainer, main
from trainers.sft import SelectorSFTConfig, SelectorSFTTrainer
from trainers.sft import main as sft_main


def values_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(trainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.model.named_parameters() if not value.equal(before[name])}


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# -- what moves -------------------------------------------------------------------------------------------------------


def test_everything_of_a_selector_moves(make_selector_trainer):
    trainer = make_selector_trainer(RCETrainer, RCEConfig, shots=[2])
    before = values_of(trainer.model)
    trainer.train()
    assert moved(trainer, before) == set(before)


def test_a_frozen_backbone_stays(make_selector_trainer):
    trainer = make_selector_trainer(RCETrainer, RCEConfig, shots=[2], freeze_backbone=True)
    before = values_of(trainer.model)
    trainer.train()
    frozen = {"input_proj.weight", "query_proj.weight", "cand_proj.weight"}
    assert moved(trainer, before) == set(before) - frozen
    assert frozen < set(before)


def test_a_vlm_has_no_such_part_to_freeze(make_vlm_trainer):
    from trainers.setup.recipes import RecipeError

    with pytest.raises(RecipeError, match="freeze_backbone: only policy: selector reads it, and this is a vlm"):
        make_vlm_trainer(RCETrainer, RCEConfig, freeze_backbone=True)


def test_everything_of_a_vlm_moves(make_vlm_trainer):
    trainer = make_vlm_trainer(RCETrainer, RCEConfig, learning_rate=1e-2)
    before = values_of(trainer.model)
    trainer.train()
    still = set(before) - moved(trainer, before)
    assert {name for name in still if "k_proj.bias" not in name} == set()  # softmax does not see a key's bias
    assert logged(trainer, "loss")[1] < logged(trainer, "loss")[0]


def test_a_frozen_vision_tower_stays(make_vlm_trainer):
    trainer = make_vlm_trainer(RCETrainer, RCEConfig, freeze_vision_tower=True, max_steps=1)
    before = values_of(trainer.model)
    tower = {id(parameter) for parameter in vision_tower(trainer.model).parameters()}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in tower}
    trainer.train()
    assert names
    assert not names & moved(trainer, before)
    assert moved(trainer, before)


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_step_is_rce_of_its_groups(make_selector_trainer):
    groups = load_groups_of(make_selector_trainer)
    trainer = make_selector_trainer(
        RCETrainer, RCEConfig, groups=groups, per_device_train_batch_size=len(groups), max_steps=2, learning_rate=0.0
    )
    scored = trainer.policy.group_log_probs(trainer.model, trainer.policy.collate(trainer.train_dataset))
    trainer.train()
    total = scored.cross_entropy.sum(dim=2)
    table = trainer.groups
    for found, temperature in zip(logged(trainer, "loss"), (2.0, 0.5), strict=True):
        assert found == pytest.approx(rce_loss(total, table.rewards, table.valid, temperature).item(), abs=1e-5)
    assert logged(trainer, "temperature") == [2.0, 0.5]


def load_groups_of(make_selector_trainer) -> list[StoredGroup]:
    """The groups that the fixture trains on by default."""
    return make_selector_trainer(RCETrainer, RCEConfig).train_groups


@pytest.mark.parametrize("kind", ["selector", "vlm"])
def test_groups_weigh_the_same_however_they_are_cut_into_micro_batches(make_selector_trainer, make_vlm_trainer, kind):
    make = make_selector_trainer if kind == "selector" else make_vlm_trainer
    size = 8 if kind == "selector" else 6
    groups = make(RCETrainer, RCEConfig).train_groups[:size]
    assert len({len(group.candidates) for group in groups}) > 2
    results = []
    for batch, accumulation in ((size, 1), (1, size), (4, 2)):
        trainer = make(
            RCETrainer,
            RCEConfig,
            groups=groups,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_steps=2,
        )
        trainer.train()
        results.append((values_of(trainer.model), logged(trainer, "loss"), logged(trainer, "grad_norm")))
    for weights, losses, norms in results[1:]:
        assert losses == pytest.approx(results[0][1], abs=1e-5)
        assert norms == pytest.approx(results[0][2], rel=1e-4)
        for name, expected in results[0][0].items():
            torch.testing.assert_close(weights[name], expected, atol=1e-6, rtol=1e-5)


def test_one_candidate_a_group_is_supervised_cross_entropy(make_selector_trainer):
    groups = [
        StoredGroup(group.id, group.where, group.candidates[:1], group.rewards[:1], group.accuracies[:1], group.pool)
        for group in load_groups_of(make_selector_trainer)
    ]
    settings = {"groups": groups, "per_device_train_batch_size": len(groups), "max_steps": 1}
    rce = make_selector_trainer(RCETrainer, RCEConfig, **settings)
    sft = make_selector_trainer(SelectorSFTTrainer, SelectorSFTConfig, **settings)
    batch = rce.policy.collate(rce.train_dataset)
    inputs = {name: value for name, value in batch.items() if name != "index"}
    logits = rce.model(**inputs, return_logits=True).logits[:, 0]  # (B, T, K)
    labels = batch["pointers"][:, 0].masked_fill(batch["pointers"][:, 0] < 0, -100)
    by_hand = cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / len(groups)
    rce.train()
    sft.train()
    assert logged(rce, "loss") == pytest.approx([by_hand.item()], abs=1e-5)
    assert logged(sft, "loss") == pytest.approx(logged(rce, "loss"), abs=1e-6)


def test_one_completion_of_a_vlm_is_supervised_cross_entropy(make_vlm_trainer):
    group = make_vlm_trainer(RCETrainer, RCEConfig).train_groups[0]
    assert len(group.candidates) == 1
    trainer = make_vlm_trainer(RCETrainer, RCEConfig, groups=[group], per_device_train_batch_size=1, max_steps=1)
    batch = trainer.policy.collate(trainer.train_dataset)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    inputs |= {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    labels = batch["input_ids"].clone()
    labels[:, : -batch["completion_mask"].shape[1]] = -100
    expected = trainer.model(**inputs, labels=labels).loss.item()
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([expected], abs=1e-5)


def test_the_warm_start_learns_the_best_beams_alone(make_selector_trainer):
    groups = load_groups_of(make_selector_trainer)
    for best in (1, 2):
        trainer = make_selector_trainer(
            SelectorSFTTrainer, SelectorSFTConfig, groups=groups, best_beams=best, per_device_train_batch_size=64
        )
        scored = trainer.policy.group_log_probs(trainer.model, trainer.policy.collate(trainer.train_dataset))
        each = scored.cross_entropy.sum(dim=2).tolist()
        expected = []
        for row, group in enumerate(groups):
            order = sorted(range(len(group.rewards)), key=lambda place, of=group: -of.rewards[place])[:best]
            expected.append(sum(each[row][place] for place in order) / len(order))
        trainer.train()
        assert logged(trainer, "loss")[0] == pytest.approx(sum(expected) / len(expected), abs=1e-5)


def test_single_candidates_hold_no_surprise(make_selector_trainer):
    """A group of one candidate, and one whose other candidates have no reward."""
    pool = [f"e{number}" for number in range(4)]
    pointers = [Candidate(pointer=["e0"]), Candidate(pointer=["e1"])]
    groups = [
        StoredGroup(0, "one", pointers[:1], [0.6], [0.6], pool),
        StoredGroup(1, "two", pointers, [None, 0.6], [None, 0.6], pool),
    ]
    trainer = make_selector_trainer(RCETrainer, RCEConfig, groups=groups, reward_normalization="z_score_clamp")
    trainer.train()
    assert all(value == value for value in logged(trainer, "loss"))
    assert logged(trainer, "frac_reward_zero_std") == [1.0] * 3


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_by_hand(make_selector_trainer, pointer_groups):
    script = GroupArguments(dataset_name=str(pointer_groups), accuracy_field="vqa_acc_score")
    eval_groups = load_stored_groups(script, "validation")
    trainer = make_selector_trainer(RCETrainer, RCEConfig, eval_groups=eval_groups, per_device_eval_batch_size=5)
    figures = trainer.evaluate()
    trainer.model.eval()
    items = trainer.eval_dataset
    with torch.no_grad():
        scored = trainer.policy.group_log_probs(trainer.model, trainer.policy.collate(items))
    accuracies, expectations, losses = [], [], []
    for row, group in enumerate(eval_groups):
        size = len(group.candidates)
        log_probs = scored.log_probs[row, :size].sum(dim=1)
        accuracies.append(group.accuracies[int(log_probs.argmax())])
        expectations.append((log_probs.softmax(0) * torch.tensor(group.rewards)).sum().item())
        losses.append((torch.tensor(group.rewards).div(0.5).softmax(0) * -log_probs).sum().item())
    assert figures["eval_accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
    assert figures["eval_expected_reward"] == pytest.approx(sum(expectations) / len(expectations), abs=1e-5)
    assert figures["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_stops_early_and_keeps_the_best(make_selector_trainer, pointer_groups):
    script = GroupArguments(dataset_name=str(pointer_groups), accuracy_field="vqa_acc_score")
    trainer = make_selector_trainer(
        RCETrainer,
        RCEConfig,
        eval_groups=load_stored_groups(script, "validation"),
        max_steps=40,
        learning_rate=0.0,  # nothing gets better
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        early_stopping_patience=2,
    )
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert trainer.args.metric_for_best_model == "eval_accuracy"
    assert trainer.args.greater_is_better


def test_the_best_vlm_is_loaded_at_the_end(make_vlm_trainer):
    """The loss falls, so the metric that wants it high takes the first checkpoint."""
    trainer = make_vlm_trainer(
        RCETrainer,
        RCEConfig,
        eval_groups=make_vlm_trainer(RCETrainer, RCEConfig).train_groups,
        max_steps=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
        temperature_end=2.0,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(logged(trainer, "eval_loss")[0], abs=1e-5)


# -- the commands, in one process -------------------------------------------------------------------------------------


@pytest.fixture
def run_main(pointer_groups, completion_groups, tiny_model, tmp_path, capsys):
    """Function: script's main, changes of a good recipe -> (exit status, errors)."""

    def run(script, policy="selector", **changes) -> tuple[int, str]:
        recipe = {
            "policy": policy,
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "max_steps": 2,
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        if policy == "selector":
            recipe |= {
                "dataset_name": str(pointer_groups),
                "query_table": str(pointer_groups / "queries.safetensors"),
                "example_table": str(pointer_groups / "examples.safetensors"),
                "selector": {"hidden_size": 16, "dropout": 0.5},
            }
        else:
            recipe |= {
                "dataset_name": str(completion_groups),
                "model_name_or_path": str(tiny_model),
                "max_pixels": 1024,
            }
        recipe |= changes
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
        status = 0
        try:
            script(["--config", str(path)])
        except SystemExit as stop:
            status = stop.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize("script", [main, sft_main], ids=["rce", "sft"])
def test_a_selector_is_trained_saved_and_reported(run_main, tmp_path, script, all_pictures):
    from models.selectors.load import load_selector

    status, error = run_main(script, eval_strategy="steps", eval_steps=1, reward_field="vqa_acc_score")
    assert status == 0, error
    selector = load_selector(tmp_path / "run")
    assert selector.config.dropout == 0.5
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "of the best-scored candidate" in page
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "load_selector" in card
    assert "AutoProcessor" not in card
    again, error = run_main(
        script, selector=None, model_name_or_path=str(tmp_path / "run"), output_dir=str(tmp_path / "again")
    )
    assert again == 0, error


def test_a_vlm_is_trained_with_adapters(run_main, tmp_path):
    status, error = run_main(
        main, "vlm", use_peft=True, lora_r=2, lora_target_modules=["all-linear"], eval_strategy="steps", eval_steps=1
    )
    assert status == 0, error
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    status, error = run_main(
        main, "vlm", model_name_or_path=str(tmp_path / "run"), output_dir=str(tmp_path / "again"), max_steps=1
    )
    assert status == 0, error


@pytest.mark.parametrize(
    ("policy", "changes", "expected"),
    [
        ("selector", {"query_table": None}, ["query_table: policy: selector needs a table of embeddings"]),
        ("selector", {"example_table": "/nowhere.safetensors"}, ["example_table: /nowhere.safetensors: no such file"]),
        (
            "selector",
            {"selector": {"hiden_size": 3}},
            ["selector: hiden_size: unknown", "hidden_size", "history"],
        ),
        ("selector", {"selector": {"history": "lstm"}}, ["selector: ", "history", "none, gate, gru", "lstm"]),
        ("selector", {"selector": {"embedding_size": 5}}, ["embeddings of 8 numbers, the selector reads 5"]),
        ("selector", {"model_name_or_path": "somewhere"}, ["either model_name_or_path or selector, found both"]),
        ("selector", {"selector": None}, ["either model_name_or_path or selector, found neither"]),
        ("selector", {"task_data": "x"}, ["task_data: only policy: vlm reads it"]),
        ("selector", {"reward_field": "vqa_gt_prob"}, ["no candidate has a 'vqa_gt_prob' to learn from"]),
        ("selector", {"accuracy_field": "nothing"}, ["accuracy_field: no candidate has a field 'nothing'"]),
        ("selector", {"reward_funcs": ["vqa_accuracy"]}, ["'vqa_accuracy' needs the column 'answers'"]),
        ("selector", {"reward_funcs": ["candidat"]}, ["candidat", "beam_score"]),
        ("selector", {"reward_funcs": ["candidate"], "reward_weights": [1.0, 2.0]}, ["reward_weights: expected 1"]),
        ("selector", {"shots": [7]}, ["no candidate has [7] examples (shots)"]),
        ("selector", {"temperature_end": 0.0}, ["temperature_end': expected a number above 0, found 0.0"]),
        ("selector", {"reward_normalization": "mean"}, ["reward_normalization", "'mean'"]),
        ("vlm", {"shots": [1]}, ["shots: only policy: selector reads it"]),
        ("vlm", {"model_name_or_path": None}, ["model_name_or_path: policy: vlm needs a model"]),
        ("vlm", {"max_prompt_length": 20}, ["tokens", "expected at most 20 (max_prompt_length)"]),
    ],
)
def test_bad_settings_end_with_one_clear_error(run_main, policy, changes, expected):
    status, error = run_main(main, policy, **changes)
    assert status == 1
    message = error[error.index("error: ") :]
    assert "Traceback" not in error
    for part in expected:
        assert part in message


def test_candidates_of_the_other_kind_are_named(run_main, pointer_groups, completion_groups):
    status, error = run_main(main, "vlm", dataset_name=str(pointer_groups))
    assert status == 1
    assert "policy: vlm learns from completions, found pointers (for policy: selector)" in error
    status, error = run_main(main, dataset_name=str(completion_groups))
    assert status == 1
    assert "policy: selector learns from pointers, found completions (for policy: vlm)" in error


def test_what_groups_lack_is_named(run_main, tmp_path):
    pool = {**POINTERS, "pool": None}
    status, error = run_main(main, dataset_name=write_groups(tmp_path, pool))
    assert (status, "group 1: field 'pool': missing" in error) == (1, True)
    status, error = run_main(main, dataset_name=write_groups(tmp_path, POINTERS))
    assert status == 1
    assert "example_table: embeddings: id 'a' is not in the table" in error
    prompt = {"id": 3, "candidates": [{"completion": "x", "reward": 1.0}]}
    status, error = run_main(main, "vlm", dataset_name=write_groups(tmp_path, prompt))
    assert (status, "group 3: field 'prompt': expected a text or chat messages" in error) == (1, True)
    nothing = {**POINTERS, "candidates": [{"pointer": ["a"]}]}
    status, error = run_main(main, dataset_name=write_groups(tmp_path, nothing))
    assert (status, "no candidate has a 'reward' to learn from" in error) == (1, True)


def test_validating_trains_nothing(run_main, tmp_path):
    assert run_main(main, validate_only=True)[0] == 0
    assert run_main(main, "vlm", validate_only=True)[0] == 0
    assert not (tmp_path / "run").exists()


def test_a_reward_that_fails_is_named(run_main, tmp_path, monkeypatch):
    (tmp_path / "failing_rewards.py").write_text("def broken(completions, **columns):\n    raise KeyError('colour')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, error = run_main(main, reward_funcs=["failing_rewards.broken"])
    assert status == 1
    assert "reward 'broken' failed" in error
    assert "colour" in error
