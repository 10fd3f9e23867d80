"""GRPO with shared prompts: what TRL's trainer learns, from fewer tokens."""

import pytest
import torch
import trl
from peft import LoraConfig

import models.shared_prefix.packing
from models.families import registry
from models.families.loading import image_token_ids
from models.families.vision_hooks import vision_tower
from models.shared_prefix.sharing import SharedPrefixError
from trainers.grpo import GRPOConfig

SAME = {"advantage_clip": None, "keep_groups_together": False}
"""Settings under which only shared prompts differ from TRL's trainer."""
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-4}
"""Adam's steps have the size of the learning rate even where a gradient is nothing but rounding."""
SGD = {"optim": "sgd", "learning_rate": 0.1}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def count_tokens(trainer) -> list[int]:
    """Sizes of what the language model reads to learn from, filled as the trainer runs."""
    seen = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled() and next(module.parameters()).requires_grad:
            seen.append(kwargs["inputs_embeds"].shape[:2].numel())

    trainer.model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize(("optimizer", "checkpointing"), [(ADAM, False), (ADAM, True), (SGD, False)])
def test_six_steps_with_kl_and_two_iterations_are_trls(make_grpo, optimizer, checkpointing):
    settings = {"beta": 0.1, "num_iterations": 2, "gradient_accumulation_steps": 2, "max_steps": 6}
    settings |= {"gradient_checkpointing": checkpointing, **optimizer}
    ours = make_grpo(**SAME, **settings, shared_prefix=True, shared_prefix_check=True)
    tokens = count_tokens(ours)
    ours.train()
    suppressed = {"suppress_tokens": sorted(image_token_ids(ours.processing_class))}
    theirs = make_grpo(trl.GRPOTrainer, trl.GRPOConfig, generation_kwargs=suppressed, **settings)
    plain_tokens = count_tokens(theirs)
    theirs.train()
    expected = weights(theirs.model)
    assert max((value - expected[name]).abs().max() for name, value in weights(ours.model).items()) <= 1e-6
    assert len(tokens) == len(plain_tokens) == 12
    assert sum(tokens) < 0.8 * sum(plain_tokens)
    for key in ("loss", "kl", "reward", "entropy"):
        pairs = zip(ours.state.log_history, theirs.state.log_history, strict=True)
        assert all(abs(one[key] - other[key]) <= 1e-5 for one, other in pairs if key in one)


def test_groups_together_read_each_prompt_once(make_grpo):
    trainer = make_grpo(gradient_accumulation_steps=2, steps_per_generation=4, max_steps=2)
    images = []
    tower = vision_tower(trainer.model)

    def note(module, args, kwargs):
        if torch.is_grad_enabled():
            images.append(len(kwargs["grid_thw"]))

    tower.register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    assert images == [2] * 4  # 8 rows are 2 groups of 4


def test_dropout_in_adapters_goes_the_plain_way_or_stops(make_grpo):
    adapters = LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"])
    with pytest.warns(UserWarning, match=r"shared_prefix: auto\): dropout of 0\.1"):
        make_grpo(init={"peft_config": adapters}, max_steps=1).train()
    with pytest.raises(SharedPrefixError, match=r"shared_prefix: true.*dropout of 0\.1"):
        make_grpo(init={"peft_config": adapters}, max_steps=1, shared_prefix=True).train()


def test_adapters_and_their_reference_are_trls(make_grpo):
    settings = {"beta": 0.1, "max_steps": 3, "gradient_accumulation_steps": 2, "num_iterations": 2, **ADAM}
    adapters = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.0)
    ours = make_grpo(**SAME, **settings, init={"peft_config": adapters}, shared_prefix=True)
    ours.train()
    suppressed = {"suppress_tokens": sorted(image_token_ids(ours.processing_class))}
    theirs = make_grpo(
        trl.GRPOTrainer, trl.GRPOConfig, generation_kwargs=suppressed, init={"peft_config": adapters}, **settings
    )
    theirs.train()
    expected = weights(theirs.model)
    assert max((value - expected[name]).abs().max() for name, value in weights(ours.model).items()) <= 1e-6


def test_the_check_finds_wrong_positions(make_grpo, monkeypatch):
    right = models.shared_prefix.packing._positions
    monkeypatch.setattr(models.shared_prefix.packing, "_positions", lambda *arguments: right(*arguments) * 2)
    with pytest.raises(SharedPrefixError, match="shared_prefix_check"):
        make_grpo(max_steps=1, shared_prefix_check=True).train()


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [
        ("qwen2_vl", ADAM),
        ("qwen3_vl", ADAM),
        # Adam makes steps of what is rounding alone: in the gradients of decays, and of biases of keys.
        pytest.param("qwen3_5", SGD, marks=pytest.mark.slow),
        pytest.param("gemma3", SGD, marks=pytest.mark.slow),
        pytest.param("gemma4", SGD, marks=pytest.mark.slow),
        pytest.param("internvl", SGD, marks=pytest.mark.slow),
        ("idefics3", SGD),
        pytest.param("llava_onevision", SGD, marks=pytest.mark.slow),
        pytest.param("smolvlm", SGD, marks=pytest.mark.slow),
    ],
)
def test_rows_without_images_beside_rows_with_the_same_one(make_grpo, task_rows, family, optimizer):
    """Rollouts follow updates in which one image stood in two prompts, and some rows have two."""
    rows = task_rows()
    counts = (0, 1, 1, 2, 1, 1)
    rows = [{**row, "images": rows[0]["images"] * counts[number % 6]} for number, row in enumerate(rows)]
    settings = {"max_steps": 3, "beta": 0.05, "gradient_accumulation_steps": 2, "family": family, **optimizer}
    shared = make_grpo(rows=rows, shared_prefix=True, shared_prefix_check=True, **settings)
    shared.train()
    plain = make_grpo(rows=rows, shared_prefix=False, **settings)
    plain.train()
    expected = weights(plain.model)
    # Gradients of Gemma 4 have fewer digits in float32, also with other padding (test_families.py).
    bound = 5e-5 if family == "gemma4" else 1e-6
    assert max((value - expected[name]).abs().max() for name, value in weights(shared.model).items()) <= bound


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "gemma4", "llava_onevision"])
def test_adapters_of_other_families_learn_what_they_learn_the_plain_way(make_grpo, task_rows, family):
    rows = [{**row, "images": row["images"] * (number % 3)} for number, row in enumerate(task_rows())]
    settings = {"rows": rows, "max_steps": 2, "beta": 0.05, "num_iterations": 2, "family": family, **SGD}
    linear = r"\.linear" if family == "gemma4" else ""  # whose tower has layers within layers
    towers = rf".*language_model.*[qv]_proj|.*vision_tower.*[qv]_proj{linear}"
    adapters = LoraConfig(r=2, target_modules=towers)
    trained = []
    for shared in (True, False):
        check = {"shared_prefix_check": shared}
        trainer = make_grpo(init={"peft_config": adapters}, shared_prefix=shared, **check, **settings)
        trainer.train()
        trained.append(weights(trainer.model))
    assert max((value - trained[1][name]).abs().max() for name, value in trained[0].items()) <= 1e-6


def test_the_setting_is_checked():
    with pytest.raises(ValueError, match="shared_prefix: expected one of auto, true, false"):
        GRPOConfig(output_dir="x", use_cpu=True, bf16=False, shared_prefix="sometimes")


def test_another_family_trains_on_the_plain_way(make_grpo, task_rows, monkeypatch):
    monkeypatch.delitem(registry._BY_TYPE, "gemma3")
    rows = [{**row, "images": [] if number % 2 else row["images"]} for number, row in enumerate(task_rows())]
    rewards = lambda completions, **columns: [float(len(set(one[0]["content"]))) for one in completions]  # noqa: E731
    trainer = make_grpo(rows=rows, rewards=rewards, family="gemma3", beta=0.05, num_iterations=2)
    before = weights(trainer.model)
    with pytest.warns(UserWarning, match="each row computes its prompt by itself .*'gemma3'"):
        trainer.train()
    moved = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)
