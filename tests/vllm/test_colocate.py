"""GRPO whose rollouts come from vLLM, in the trainer's process: it learns from what was sampled, as it was sampled."""

import json
from pathlib import Path

import pytest
import torch
from grpo_runs import make_trainer, picture, questions, record
from peft import LoraConfig
from places import ROOT
from vllm_runs import BY_VLLM, EAGER

pytestmark = pytest.mark.usefixtures("shared_engines")
CLOSE_MEAN, CLOSE_MAX, CLOSE_RATIO = 1e-4, 1e-3, 1e-3
"""How close float32 in both engines comes, in nats a token; and the ratio of a whole completion to 1."""


def rows(images: tuple[int, ...] = (1, 2, 0)):
    """Twelve rows with so many images each, in turn."""
    return questions(12, images=lambda number: picture(number) * images[number % len(images)])


def vowels(completions, **columns) -> list[float]:
    """A reward with contrast even for the gibberish of an untrained model: the share of vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


@pytest.fixture
def make_grpo(literate_model, tmp_path):
    """Function: settings of `GRPOConfig` -> a trainer with rollouts by vLLM."""

    def make(given=None, rewards=vowels, folder=tmp_path, init=None, model=literate_model, **settings):
        given = rows() if given is None else given
        return make_trainer(str(model), folder, rewards, given, init=init, **{**BY_VLLM, **settings})

    return make


def differences(part) -> torch.Tensor:
    """(tokens,) between the log-probabilities of trainer and sampler, of a micro-batch before its update."""
    mask = part.inputs["completion_mask"].bool()
    return (part.log_probs - part.inputs["sampling_per_token_logps"])[mask].abs()


def check_same_policy(found) -> None:
    """Sampler and trainer agree on every token of a run that makes one update a rollout."""
    assert len(found.parts) == len(found.rollouts)
    for part in found.parts:
        apart = differences(part)
        assert apart.mean() < CLOSE_MEAN
        assert apart.max() < CLOSE_MAX
        assert (part.inputs["importance_sampling_ratio"] - 1).abs().max() < CLOSE_RATIO


# -- sampler and trainer ----------------------------------------------------------------------------------------------


def test_weights_reach_the_engine_after_every_update(make_grpo):
    """With none, one and two images in a batch, and steps that are large enough for stale weights to show."""
    trainer = make_grpo(max_steps=5)
    found = record(trainer)
    trainer.train()
    check_same_policy(found)
    visual = torch.cat(
        [(part.inputs["prompt_ids"] == trainer.processing_class.image_token_id).sum(1) for part in found.parts]
    )
    assert len(visual.unique()) == 3


def test_weights_that_do_not_reach_the_engine_would_show(make_grpo, monkeypatch):
    trainer = make_grpo(max_steps=3, max_sampling_difference=None)
    found, sync = record(trainer), trainer.vllm_generation.sync_weights
    monkeypatch.setattr(trainer.vllm_generation, "sync_weights", lambda: found.rollouts or sync())
    trainer.train()
    assert differences(found.parts[0]).max() < CLOSE_MAX
    assert differences(found.parts[2]).max() > 100 * CLOSE_MAX


@pytest.mark.parametrize("drawn", ["gaussian", True], ids=["moved", "new"])
def test_adapters_reach_the_engine_merged(make_grpo, drawn):
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=drawn)
    trainer = make_grpo(max_steps=3, learning_rate=3e-2, init={"peft_config": adapters})
    found = record(trainer)
    trainer.train()
    check_same_policy(found)
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in trainer.model.named_parameters())


def test_temperature_follows_its_schedule_on_both_sides(make_grpo):
    trainer = make_grpo(max_steps=3, temperature=1.2, temperature_schedule="linear", temperature_end=0.6)
    found, asked, generate = record(trainer), [], trainer.vllm_generation.generate

    def noted(*args, **kwargs):
        asked.append(trainer.vllm_generation.temperature)
        return generate(*args, **kwargs)

    trainer.vllm_generation.generate = noted
    trainer.train()
    assert asked == pytest.approx([1.2, 0.9, 0.6])
    check_same_policy(found)


def test_what_the_recipe_of_7b_switches_on_works_together(make_grpo):
    settings = {"beta": 0.01, "adaptive_kl": True, "kl_target_min": 0.01, "kl_target_max": 0.1}
    settings |= {"dynamic_sampling_rounds": 1, "freeze_vision_tower": True, "gradient_checkpointing": True}
    trainer = make_grpo(
        max_steps=3, gradient_accumulation_steps=2, per_device_train_batch_size=8, learning_rate=1e-3, **settings
    )
    found = record(trainer)
    trainer.train()
    for part in found.parts[:2]:  # one rollout
        assert differences(part).max() < CLOSE_MAX
    history = [entry for entry in trainer.state.log_history if "kl" in entry]
    assert history[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert history[-1]["sampling/sampling_logp_difference/max"] < CLOSE_MAX


# -- what is sampled --------------------------------------------------------------------------------------------------


def test_tokens_of_pictures_are_never_sampled(make_grpo, tiny_model):
    trainer = make_grpo(model=tiny_model, max_completion_length=64, temperature=2.0)
    pictures = {trainer.processing_class.image_token_id, trainer.processing_class.video_token_id}

    def sampled() -> set[int]:
        [completions] = trainer._generate_single_turn(
            *trainer._tokenize_prompts(list(trainer.train_dataset["prompt"])), 1
        )[:1]
        return {token for completion in completions for token in completion}

    completions = [sampled() for _ in range(3)]
    assert set.union(*completions) & pictures == set()
    assert len(set.union(*completions)) > 250  # of 400 tokens
    trainer.vllm_generation.generation_kwargs = {}
    assert set.union(*(sampled() for _ in range(3))) & pictures


def test_groups_without_contrast_are_drawn_anew(make_grpo):
    calls = []

    def flat_at_first(completions, **columns):
        calls.append(len(completions))
        return [0.5] * len(completions) if len(calls) == 1 else vowels(completions)

    trainer = make_grpo(rewards=flat_at_first, max_steps=1, dynamic_sampling_rounds=1)
    found = record(trainer)
    trainer.train()
    assert len(calls) == 2
    assert found.rollouts[0]["advantages"].abs().max() > 0
    check_same_policy(found)


def test_seeds_draw_differently_and_the_same_seed_alike(make_grpo, tmp_path):
    def sampled(seed: int, place: str) -> list[list[int]]:
        trainer = make_grpo(max_steps=1, seed=seed, data_seed=0, folder=tmp_path / place)
        found = record(trainer)
        trainer.train()
        return found.rollouts[0]["completion_ids"].tolist()

    first = sampled(0, "a")
    assert sampled(0, "b") == first
    assert sampled(1, "c") != first


def test_evaluations_are_sampled_by_vllm(make_grpo):
    trainer = make_grpo(max_steps=1, init={"eval_dataset": rows()}, per_device_eval_batch_size=8)
    trainer.train()
    assert 0 < trainer.evaluate()["eval_reward"] < 1


# -- whole runs -------------------------------------------------------------------------------------------------------


def test_rewards_rise(make_grpo):
    trainer = make_grpo(max_steps=30, learning_rate=3e-3, num_generations=8, per_device_train_batch_size=32)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-5:]) > 1.3 * sum(rewards[:5])


def test_a_run_that_is_resumed_goes_on_as_it_was(make_grpo, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}

    def trained(place: str, checkpoint: Path | None) -> dict[str, torch.Tensor]:
        trainer = make_grpo(folder=tmp_path / place, **settings)
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}

    whole = trained("whole", None)
    resumed = trained("resumed", tmp_path / "whole" / "run" / "checkpoint-2")
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize("recipe", ["agent_selection"])
def test_the_recipe_of_7b_runs_with_a_tiny_model(recipe, literate_model, report_data, tmp_path, capsys):
    """But for what a CPU lacks: half precision, sleep mode and DeepSpeed's GPUs."""
    from trainers.grpo import main

    words = ["--config", str(ROOT / "recipes" / f"{recipe}.yaml"), "--model_name_or_path", str(literate_model)]
    words += ["--dataset_name", str(report_data), "--output_dir", str(tmp_path / "run"), "--max_pixels", "4096"]
    words += ["--use_cpu", "true", "--bf16", "false", "--dtype", "float32", "--vllm_enable_sleep_mode", "false"]
    words += [
        "--vllm_gpu_memory_utilization",
        "0.05",
        "--vllm_max_model_length",
        "1024",
        "--max_completion_length",
        "16",
    ]
    words += ["--vllm_kwargs", json.dumps(EAGER), "--max_steps", "2", "--max_prompt_length", "900"]
    main([*words, "--validate_only", "true"])
    assert "valid" in capsys.readouterr().out
    main(words)
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "sampling_logp_difference" in report


def test_sleep_mode_frees_memory_between_rollouts(make_grpo):
    from vllm.platforms import current_platform

    if not current_platform.is_sleep_mode_available():
        pytest.skip(f"vLLM has no sleep mode on {current_platform.device_type}")
    trainer = make_grpo(max_steps=2, vllm_enable_sleep_mode=True)
    found = record(trainer)
    trainer.train()
    check_same_policy(found)
