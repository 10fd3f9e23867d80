"""Offline GRPO: its first step, its reference, its curriculum, and that no dropout enters the ratio."""

import pytest
import torch
import yaml

from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from trainers.groups.data import GroupArguments, StoredGroup, load_stored_groups
from trainers.losses import group_advantages
from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer, StoredLogProbs, disable_dropout, main


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def values_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(params=["selector", "vlm"])
def make(request, make_selector_trainer, make_vlm_trainer):
    """Function: settings -> a trainer of a selector (with dropout in its configuration) or of the tiny VLM."""

    def build(**settings):
        if request.param == "vlm":
            return make_vlm_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, **settings)
        selector = {"dropout": 0.5} | settings.pop("selector", {})
        return make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, selector=selector, **settings)

    build.kind = request.param
    return build


@pytest.mark.parametrize("level", ["sequence", "step"])
def test_the_first_step_is_taken_from_the_policy_itself(make, level):
    trainer = make(max_steps=1, ratio_level=level)
    trainer.train()
    assert logged(trainer, "ratio") == pytest.approx([1.0], abs=1e-5)
    assert logged(trainer, "kl") == pytest.approx([0.0], abs=1e-8)
    assert logged(trainer, "clip_fraction") == [0.0]
    assert logged(trainer, "beta") == [0.15]
    assert trainer.beta == pytest.approx(0.1)  # the KL is below its target


def test_the_policy_follows_the_advantages(make):
    """Candidates with positive advantages become more likely, the others less."""
    trainer = make(max_steps=6, per_device_train_batch_size=8, beta=0.001, adaptive_kl=False)
    before = values_of(trainer.model)
    trainer.train()
    assert all(not value.equal(before[name]) for name, value in trainer.model.named_parameters() if _moves(name))
    scored = trainer._score_all(trainer.model, trainer.train_dataset, "test")
    gains = []
    for row, (now, then) in enumerate(zip(scored.rows, trainer._reference.rows, strict=True)):
        size = len(now)
        advantages = group_advantages(
            trainer.groups.rewards[row : row + 1, :size], trainer.groups.valid[row : row + 1, :size], std_floor=0.1
        )[0]
        gains.append((advantages * (now.sum(dim=1) - then.sum(dim=1))).sum().item())
    assert sum(gains) > 0
    assert logged(trainer, "kl")[-1] > 0


def _moves(name: str) -> bool:
    return "k_proj.bias" not in name  # softmax does not see a key's bias


def test_a_frozen_backbone_stays(make_selector_trainer):
    trainer = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, freeze_backbone=True, shots=[2])
    before = values_of(trainer.model)
    trainer.train()
    still = {name for name, value in trainer.model.named_parameters() if value.equal(before[name])}
    assert still == {"input_proj.weight", "query_proj.weight", "cand_proj.weight"}


def test_dropout_is_off_in_training_and_stays_in_the_configuration(make_selector_trainer):
    from peft import LoraConfig, get_peft_model

    trainer = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, selector={"dropout": 0.5})
    batch = trainer.policy.collate(trainer.train_dataset)
    inputs = {name: value for name, value in batch.items() if name != "index"}
    selector = trainer.model
    assert selector.train()(**inputs).log_probs.equal(selector.eval()(**inputs).log_probs)
    assert selector.config.dropout == 0.5
    noisy = PointerSelector(selector.config).train()
    assert not noisy(**inputs).log_probs.equal(noisy(**inputs).log_probs)
    adapted = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"], lora_dropout=0.5)
    )
    disable_dropout(adapted)
    adapted.train()
    assert {module.p for module in adapted.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_the_old_policy_is_refreshed_and_the_reference_stays(make_selector_trainer):
    """With a learning rate this large, an epoch moves the policy; at the start of each, the ratio is 1 again."""
    groups = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig).train_groups[:8]
    settings = {"groups": groups, "per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 0.05}
    settings |= {"beta": 0.0, "adaptive_kl": False}
    refreshed = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, old_policy_epochs=1, **settings)
    refreshed.train()
    ratios = logged(refreshed, "ratio")  # two steps an epoch
    assert ratios[::2] == pytest.approx([1.0] * 3, abs=1e-5)
    assert all(abs(ratio - 1) > 1e-3 for ratio in ratios[1::2])
    kls = logged(refreshed, "kl")
    assert kls[0] == pytest.approx(0, abs=1e-8)
    assert min(kls[2], kls[4]) > 1e-3  # to the reference, which is not refreshed

    kept = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, old_policy_epochs=0, **settings)
    kept.train()
    assert all(abs(ratio - 1) > 1e-3 for ratio in logged(kept, "ratio")[1:])
    assert [old.equal(reference) for old, reference in zip(kept._old.rows, kept._reference.rows, strict=True)]


def test_the_kl_can_be_taken_to_another_model(make_selector_trainer, tmp_path):
    config = {"embedding_size": 8, "hidden_size": 16, "num_heads": 2, "num_layers": 1}
    other = PointerSelector(PointerSelectorConfig(**config, seed=7)).eval()
    trainer = make_selector_trainer(
        OfflineGRPOTrainer, OfflineGRPOConfig, max_steps=1, per_device_train_batch_size=64, reference_model="somewhere"
    )
    trainer._load_reference = {"somewhere": other}.get
    batch = trainer.policy.collate(trainer.train_dataset)
    with torch.no_grad():
        now = trainer.policy.group_log_probs(trainer.model.eval(), batch)
        there = trainer.policy.group_log_probs(other, batch)
    trainer.train()
    apart = now.log_probs.sum(dim=2) - there.log_probs.sum(dim=2)
    exists = now.mask.any(dim=2)
    expected = ((apart.exp() - 1 - apart) * exists).sum(dim=1) / exists.sum(dim=1)
    assert expected.mean() > 1e-3
    assert logged(trainer, "kl") == pytest.approx([expected.mean().item()], rel=1e-4)
    assert logged(trainer, "ratio") == pytest.approx([1.0], abs=1e-5)


def test_an_evaluation_measures_kl_and_ratio_to_the_reference(make_selector_trainer, pointer_groups):
    held_out = load_stored_groups(GroupArguments(dataset_name=str(pointer_groups)), "validation")
    settings = {"eval_groups": held_out, "learning_rate": 0.05, "per_device_eval_batch_size": 5}
    trainer = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, **settings)
    before = trainer.evaluate()
    assert (before["eval_kl"], before["eval_ratio"]) == pytest.approx((0, 1), abs=1e-6)
    batch = trainer.policy.collate(trainer.eval_dataset)
    start = trainer.policy.group_log_probs(trainer.model.eval(), batch).log_probs.sum(dim=2).detach()
    trainer.train()
    now = trainer.policy.group_log_probs(trainer.model.eval(), batch)
    exists = now.mask.any(dim=2)
    apart = now.log_probs.sum(dim=2) - start
    kl, ratio = (
        ((values * exists).sum(dim=1) / exists.sum(dim=1)).mean().item()
        for values in (apart.exp() - 1 - apart, apart.exp())
    )
    assert kl > 1e-3
    after = trainer.evaluate()
    assert (after["eval_kl"], after["eval_ratio"]) == pytest.approx((kl, ratio), rel=1e-4)


def test_the_checkpoint_of_the_smallest_kl_is_kept(make_selector_trainer, pointer_groups):
    """The policy leaves the reference step by step, so the first checkpoint is the nearest to it."""
    from models.selectors.load import load_selector

    held_out = load_stored_groups(GroupArguments(dataset_name=str(pointer_groups)), "validation")
    settings = {"metric_for_best_model": "eval_kl", "load_best_model_at_end": True, "learning_rate": 0.02}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, eval_groups=held_out, **settings, **steps)
    assert trainer.args.greater_is_better is False
    trainer.train()
    kls = logged(trainer, "eval_kl")
    assert kls == sorted(kls)
    assert kls[0] < kls[2]
    assert trainer.state.best_metric == kls[0]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    kept = load_selector(trainer.state.best_model_checkpoint)
    for name, value in kept.named_parameters():
        assert value.equal(trainer.model.get_parameter(name))


def test_the_curriculum_shows_best_and_worst_and_compares_with_the_whole_group(make_selector_trainer):
    [group] = [
        group
        for group in make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig).train_groups
        if len(group.candidates) == 5
    ][:1]
    rewards = [0.0, 0.3, 1.0, 0.4, 0.5]
    group = StoredGroup(group.id, group.where, group.candidates, rewards, rewards, group.pool)
    trainer = make_selector_trainer(
        OfflineGRPOTrainer,
        OfflineGRPOConfig,
        groups=[group],
        max_steps=2,
        curriculum_best_and_worst=1,
        curriculum_share=0.5,
    )
    trainer.train()
    mean, size = sum(rewards) / 5, [reward - sum(rewards) / 5 for reward in rewards]
    std = (sum(value**2 for value in size) / 4) ** 0.5
    ends = [(0.0 - mean) / std, (1.0 - mean) / std]
    assert logged(trainer, "advantage_mean") == pytest.approx([sum(ends) / 2, 0.0], abs=1e-5)
    assert logged(trainer, "policy_loss")[0] == pytest.approx(-sum(ends) / 2, abs=1e-5)  # all ratios are 1


def test_flat_groups_give_no_gradient(make_selector_trainer):
    groups = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig).train_groups
    flat = [
        StoredGroup(group.id, group.where, group.candidates, [0.6] * len(group.rewards), group.accuracies, group.pool)
        for group in groups
    ]
    trainer = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig, groups=flat, optim="sgd", learning_rate=0.1)
    before = values_of(trainer.model)
    trainer.train()
    assert logged(trainer, "frac_reward_zero_std") == [1.0] * 3
    assert logged(trainer, "policy_loss") == [0.0] * 3
    assert max(logged(trainer, "grad_norm")) < 1e-5
    moved = [(value - before[name]).abs().max().item() for name, value in trainer.model.named_parameters()]
    assert max(moved) < 1e-6


def test_micro_batches_do_not_change_a_step(make_selector_trainer):
    groups = make_selector_trainer(OfflineGRPOTrainer, OfflineGRPOConfig).train_groups[:8]
    results = []
    for batch, accumulation in ((8, 1), (1, 8)):
        trainer = make_selector_trainer(
            OfflineGRPOTrainer,
            OfflineGRPOConfig,
            groups=groups,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            max_steps=3,
            kl_target_max=1e-6,
            kl_target_min=0.0,
        )
        trainer.train()
        results.append((values_of(trainer.model), logged(trainer, "loss"), logged(trainer, "beta"), trainer.beta))
    (first, losses, betas, beta), (second, *others) = results
    assert others[0] == pytest.approx(losses, abs=1e-5)
    assert others[1] == pytest.approx(betas)
    assert others[2] == beta > 0.15
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)


def test_log_probs_come_back_from_a_file():
    rows = [torch.randn(3, 2), torch.randn(1, 5), torch.randn(2, 1)]
    back = StoredLogProbs.from_tensors(StoredLogProbs(rows).tensors("old"), "old")
    assert all(one.equal(other) for one, other in zip(rows, back.rows, strict=True))
    placed = back.batch(torch.tensor([2, 0]), torch.zeros(2, 3, 2))
    assert placed[0, :2, :1].equal(rows[2])
    assert placed[1].equal(rows[0])
    assert placed[0, 2:].abs().sum() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_normalization": "z_score"}, "advantages are z-scores already; expected 'raw' or 'rank'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: a policy gradient has no labels"),
        ({"beta": 0.0}, "adaptive_kl needs the KL"),
        ({"kl_target_min": 1.0}, r"kl_target_min \(1.0\) must not exceed kl_target_max"),
        ({"curriculum_best_and_worst": 0}, "curriculum_best_and_worst: expected at least 1, found 0"),
        ({"curriculum_share": 2.0}, "curriculum_share: expected a number from 0 to 1, found 2.0"),
        ({"clip_epsilon": -0.2}, "clip_epsilon: expected a number above 0"),
        ({"old_policy_epochs": -1}, "old_policy_epochs: expected at least 0, found -1"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        OfflineGRPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_a_selector_is_trained_from_its_warm_start_by_the_command(pointer_groups, tmp_path, capsys, all_pictures):
    from models.selectors.load import load_selector

    start = PointerSelector(PointerSelectorConfig(embedding_size=8, hidden_size=16, dropout=0.5))
    start.save_pretrained(tmp_path / "start")
    recipe = {
        "policy": "selector",
        "dataset_name": str(pointer_groups),
        "query_table": str(pointer_groups / "queries.safetensors"),
        "example_table": str(pointer_groups / "examples.safetensors"),
        "model_name_or_path": str(tmp_path / "start"),
        "reference_model": str(tmp_path / "start"),
        "reward_funcs": [{"name": "candidate", "reward_mode": "hard_plus_soft"}],
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    main(["--config", str(tmp_path / "recipe.yaml")])
    trained = load_selector(tmp_path / "run")
    assert trained.config.dropout == 0.5
    assert not trained.query_proj.weight.equal(start.query_proj.weight)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(title in page for title in ("KL to the reference", "clipped steps", "probability ratio"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "recipe.yaml"), "--reference_model", "/nowhere", "--output_dir", "x"])
    assert "reference_model: '/nowhere': no such folder" in capsys.readouterr().err


def test_the_curriculum_keeps_its_earlier_name(tmp_path):
    args = OfflineGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, curriculum_top_k=2)
    assert (args.curriculum_best_and_worst, args.curriculum_top_k) == (2, None)
    with pytest.raises(ValueError, match="curriculum_top_k: the earlier name of curriculum_best_and_worst, which is"):
        OfflineGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, curriculum_top_k=2, curriculum_best_and_worst=1)
