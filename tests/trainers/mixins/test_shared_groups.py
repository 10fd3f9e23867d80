"""RCE, offline GRPO and reward models with shared prompts: what they learn without, from fewer tokens."""

from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from preference_runs import settings, write_preferences, write_ranked
from prefix_cases import tiny_qwen2_5_vl

from data.preferences import load_preferences
from models.families.loading import load_processor, load_vlm
from models.reward.encoding import encode_groups
from models.reward.inputs import ResponseGroup
from models.reward.load import from_backbone
from models.shared_prefix.sharing import SharedPrefix, SharedPrefixError
from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer
from trainers.rce import RCEConfig, RCETrainer
from trainers.reward import RewardConfig, RewardTrainer

SGD = {"optim": "sgd", "learning_rate": 0.1}
TRAINERS = {"rce": (RCETrainer, RCEConfig), "offline GRPO": (OfflineGRPOTrainer, OfflineGRPOConfig)}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def furthest(one, other) -> float:
    expected = weights(other)
    return max((value - expected[name]).abs().max().item() for name, value in weights(one).items())


def count(module, key: str, size) -> list[int]:
    """What a module reads to learn from, filled as the trainer runs."""
    seen: list[int] = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled() and next(module.parameters()).requires_grad:
            seen.append(size(kwargs[key]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return seen


@pytest.mark.parametrize(
    ("method", "checkpointing", "family"),
    [
        *product(TRAINERS, (False, True), ["qwen2_vl"]),
        ("rce", False, "qwen3_vl"),
        pytest.param("offline GRPO", False, "qwen3_5", marks=pytest.mark.slow),
    ],
)
def test_stored_groups_teach_the_same_from_fewer_tokens(make_vlm_trainer, method, checkpointing, family):
    options = {"max_steps": 4, "num_train_epochs": 2, "gradient_checkpointing": checkpointing, "family": family, **SGD}
    trainers, tokens, images = [], [], []
    for shared in (True, False):
        trainer = make_vlm_trainer(*TRAINERS[method], shared_prefix=shared, shared_prefix_check=shared, **options)
        combined = trainer.model.model
        tokens.append(count(combined.language_model, "inputs_embeds", lambda embeds: embeds.shape[:2].numel()))
        images.append(count(combined.visual, "grid_thw", len))
        trainer.train()
        trainers.append(trainer)
    start = load_vlm(trainers[0].model.config._name_or_path, device="cpu", dtype="float32")[0]
    assert furthest(trainers[0].model, trainers[1].model) <= 1e-6
    assert furthest(trainers[0].model, start) > 1e-3
    assert sum(tokens[0]) < 0.75 * sum(tokens[1])
    assert sum(images[0]) < 0.6 * sum(images[1])


def test_the_check_knows_that_a_pass_is_in_bfloat16(make_vlm_trainer):
    """Which the model enters by itself, where weights are in float32."""
    trainer = make_vlm_trainer(RCETrainer, RCEConfig, max_steps=1, bf16=True, shared_prefix_check=True)
    trainer.train()
    assert not trainer.policy.sharing._unchecked


def test_adapters_with_dropout_are_named(make_vlm_trainer, tiny_model):
    model, _ = load_vlm(str(tiny_model), device="cpu", dtype="float32")
    model = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"]))
    with pytest.raises(SharedPrefixError, match=r"dropout of 0\.1"):
        make_vlm_trainer(RCETrainer, RCEConfig, model=model, shared_prefix=True).train()


# -- reward models ----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_reward(tiny_model, tmp_path):
    """Function: records, settings of `RewardConfig` -> a trainer."""

    def build(records, **changes):
        args = RewardConfig(**settings(output_dir=str(tmp_path / "run"), **changes))
        torch.manual_seed(0)
        model = from_backbone(tiny_model, args.model_settings(), dtype=torch.float32)
        processor = load_processor(str(tiny_model), max_pixels=1024)
        return RewardTrainer(model, args, train_dataset=records, processing_class=processor)

    return build


@pytest.mark.parametrize("kind", ["pairs", "groups", "pairs and a language loss"])
def test_reward_models_learn_the_same_from_fewer_tokens(make_reward, tmp_path, kind):
    write = write_ranked if kind == "groups" else write_preferences
    records = load_preferences(write(tmp_path / "data"))[0]
    options = {"max_steps": 4, "per_device_train_batch_size": 4, **SGD}
    options |= {"loss_type": "plackett_luce"} if kind == "groups" else {}
    options |= {"lm_loss_weight": 0.5} if "language" in kind else {}
    trainers, tokens = [], []
    for shared in (True, False):
        trainer = make_reward(records, shared_prefix=shared, shared_prefix_check=shared, **options)
        language = trainer.model.model.language_model
        tokens.append(count(language, "inputs_embeds", lambda embeds: embeds.shape[:2].numel()))
        trainer.train()
        trainers.append(trainer)
    assert furthest(trainers[0].model, trainers[1].model) <= 1e-6
    assert sum(tokens[0]) < 0.7 * sum(tokens[1])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["qwen2", "qwen2.5"])
def test_scores_of_groups_are_those_of_single_rows(tiny_model, tmp_path, side, family):
    backbone = str(tiny_model)
    if family == "qwen2.5":
        backbone = str(tmp_path / "qwen2_5")
        other = tiny_qwen2_5_vl()
        other.resize_token_embeddings(400)
        other.config.image_token_id = load_processor(str(tiny_model)).tokenizer.convert_tokens_to_ids("<|image_pad|>")
        other.save_pretrained(backbone)
    torch.manual_seed(0)
    model = from_backbone(backbone, dtype=torch.float32).eval()
    for parameter in model.score_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    records = load_preferences(write_ranked(tmp_path / "data"))[0][:4]
    # Responses that begin alike, are the same, or are empty.
    groups = [
        ResponseGroup(record.prompt(), record.images, [*record.response, record.response[0], "", "It is"])
        for record in records
    ]
    groups.append(ResponseGroup("What is it?", [], ["It is red.", "It is"]))
    groups.append(ResponseGroup(records[0].prompt(), records[0].images, ["alone"]))
    inputs = encode_groups(load_processor(str(tiny_model)), groups, padding_side=side)
    seen = count(model.model.language_model, "inputs_embeds", lambda embeds: embeds.shape[:2].numel())
    scores = model(**inputs).logits
    scores.sum().backward()
    gradient = model.model.language_model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model.sharing = SharedPrefix("false")
    plain = model(**inputs).logits
    plain.sum().backward()
    expected = model.model.language_model.layers[0].mlp.up_proj.weight.grad
    torch.testing.assert_close(scores, plain, atol=5e-6, rtol=0)
    assert (gradient - expected).norm() <= 5e-6 * expected.norm()
    assert scores.std() > 0.01
    assert seen[0] < 0.5 * seen[1]
