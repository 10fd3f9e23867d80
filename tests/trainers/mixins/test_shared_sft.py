"""SFT with shared prompts: what TRL's trainer learns and logs, from fewer tokens."""

import warnings

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from prefix_cases import double

import models.shared_prefix.packing
import trainers.mixins.shared_prompts
from models.families.loading import image_reader, load_processor
from models.shared_prefix.sharing import SharedPrefixError
from trainers.setup.task_data import rows_by_prompt, to_dataset
from trainers.sft import SFTConfig, SFTTrainer, with_completions

ANSWERS = ("a long answer to begin with", "no", "it is blurred and dark", "none of them")
ADAPTERS = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.0)


@pytest.fixture
def answered(task_rows):
    """24 rows: 4 answers to each of 6 prompts, of which the second has no image, and two show the same one."""
    prompts = [dict(row) for row in task_rows()[:6]]
    prompts[1]["images"] = []
    prompts[3]["images"] = prompts[2]["images"]
    rows = [{**row, "completion": text} for row in prompts for text in ANSWERS]
    return with_completions(rows, "data")


@pytest.fixture
def make_sft(tiny_family, answered, tmp_path):
    """Function: settings of `SFTConfig` -> a trainer on `answered`, 8 rows a step, in their order."""

    def make(cls=SFTTrainer, config=SFTConfig, rows=None, family="qwen2_vl", peft_config=None, **settings):
        folder = str(tiny_family(family))
        processor = load_processor(folder, max_pixels=1024 if family.startswith("qwen") else None)
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 8,
            "train_sampling_strategy": "sequential",
            "max_length": None,
            "max_steps": 2,
            "optim": "sgd",
            "learning_rate": 0.1,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "model_init_kwargs": {"dtype": "float32"},
        }
        dataset = to_dataset(rows or answered, image_reader(processor), ("prompt", "completion", "images"))
        return cls(
            folder,
            args=config(**{**defaults, **settings}),
            train_dataset=dataset,
            eval_dataset=dataset.select(range(min(8, len(dataset)))),
            processing_class=processor,
            peft_config=peft_config,
        )

    return make


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def furthest(one, other) -> float:
    expected = weights(other)
    return max((value - expected[name]).abs().max().item() for name, value in weights(one).items())


def count_tokens(trainer) -> list[int]:
    """Sizes of what the language model reads, filled as the trainer runs."""
    seen = []
    inner = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    inner.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    return seen


def one_batch(trainer, items: int | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, list[float]]]:
    """Loss, gradients and figures of the first batch, in float64."""
    trainer.model.double().train()
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with double():
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=items)
        loss.backward()
    gradients = {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
    return loss.detach(), gradients, trainer._metrics["train"]


@pytest.mark.parametrize(
    ("family", "loss_type", "items"),
    [
        ("qwen2_vl", "nll", None),
        ("qwen2_vl", "dft", 50),
        ("qwen3_vl", "nll", None),
        ("qwen3_vl", "dft", 50),
        ("llava_onevision", "nll", None),
    ],
)
def test_loss_gradients_and_figures_are_trls_in_float64(make_sft, family, loss_type, items):
    ours = make_sft(family=family, shared_prefix=True, loss_type=loss_type)
    tokens = count_tokens(ours)
    theirs = make_sft(trl.SFTTrainer, trl.SFTConfig, family=family, loss_type=loss_type)
    plain_tokens = count_tokens(theirs)
    loss, gradients, figures = one_batch(ours, items)
    expected, right, trls = one_batch(theirs, items)
    assert sum(tokens) < 0.5 * sum(plain_tokens)
    assert abs(loss - expected) <= 1e-10 * abs(expected)
    assert gradients.keys() == right.keys()
    total = torch.stack([one.norm() for one in right.values()]).norm()
    for name, one in right.items():
        assert (gradients[name] - one).norm() <= 1e-10 * max(one.norm(), 1e-2 * total), name
    assert figures.keys() == trls.keys() == {"entropy", "mean_token_accuracy", "num_tokens"}
    for name, values in trls.items():
        assert figures[name] == pytest.approx(values, rel=1e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"peft_config": ADAPTERS, "gradient_checkpointing": True},
        {"completion_only_loss": True, "label_smoothing_factor": 0.1},
        pytest.param({"family": "qwen3_5"}, marks=pytest.mark.slow),
    ],
    ids=["accumulation", "checkpointing", "adapters", "label smoothing", "qwen3_5"],
)
@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")
def test_a_run_is_trls(make_sft, settings):
    ours = make_sft(shared_prefix=True, shared_prefix_check=True, **settings)
    start = weights(ours.model)
    ours.train()
    theirs = make_sft(trl.SFTTrainer, trl.SFTConfig, **settings)
    theirs.train()
    assert furthest(ours.model, theirs.model) <= 1e-6
    assert max((value - start[name]).abs().max() for name, value in weights(ours.model).items()) > 1e-4
    for one, other in zip(ours.state.log_history, theirs.state.log_history, strict=True):
        for key in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-5), key


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen3_5", "internvl", "idefics3", "gemma3", "gemma4"])
def test_every_family_that_shares_passes_the_check(make_sft, family, bf16):
    trainer = make_sft(family=family, max_steps=1, bf16=bf16, shared_prefix=True, shared_prefix_check=True)
    trainer.train()
    assert not trainer.sharing._unchecked


def test_an_evaluation_is_trls(make_sft):
    ours, theirs = make_sft(), make_sft(trl.SFTTrainer, trl.SFTConfig)
    tokens, plain_tokens = count_tokens(ours), count_tokens(theirs)
    found, expected = ours.evaluate(), theirs.evaluate()
    assert sum(tokens) < 0.5 * sum(plain_tokens)
    for key in ("eval_loss", "eval_entropy", "eval_mean_token_accuracy"):
        assert found[key] == pytest.approx(expected[key], abs=1e-5), key


def test_labels_within_an_answer_may_be_left_out(make_sft):
    """As those of a collator that masks some of the answer."""
    losses = []
    for shared in (True, False):
        trainer = make_sft(shared_prefix=shared)
        inputs = dict(next(iter(trainer.get_train_dataloader())))
        learned = (inputs["labels"] != -100).cumsum(dim=1)
        inputs["labels"] = inputs["labels"].masked_fill((learned == 2) | (learned == 3), -100)
        losses.append(trainer.compute_loss(trainer.model, inputs).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_check_finds_wrong_positions(make_sft, monkeypatch):
    right = models.shared_prefix.packing._positions
    monkeypatch.setattr(models.shared_prefix.packing, "_positions", lambda *arguments: right(*arguments) * 2)
    with pytest.raises(SharedPrefixError, match="shared_prefix_check: values"):
        make_sft(max_steps=1, shared_prefix_check=True).train()


def test_the_check_finds_prompts_that_are_only_alike(make_sft, answered, monkeypatch):
    """Equal words about two pictures."""
    rows = [{**row, "images": answered[8 * (number % 2)]["images"]} for number, row in enumerate(answered[:4])]
    right = trainers.mixins.shared_prompts.images_of_rows
    monkeypatch.setattr(trainers.mixins.shared_prompts, "images_of_rows", lambda *given: right(*given)[:1] * 4)
    with pytest.raises(SharedPrefixError, match="shared_prefix_check: values"):
        make_sft(rows=rows, per_device_train_batch_size=4, max_steps=1, shared_prefix_check=True).train()


# -- what goes the plain way ------------------------------------------------------------------------------------------


def test_nothing_is_said_where_no_prompt_repeats(make_sft, answered):
    """The answers differ, and so do the images of two prompts with equal words."""
    adapters = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)
    rows = [answered[0], {**answered[4], "prompt": answered[0]["prompt"]}, answered[8]]
    trainer = make_sft(rows=rows, peft_config=adapters, max_steps=1, per_device_train_batch_size=3)
    with warnings.catch_warnings(action="error", category=UserWarning):
        warnings.filterwarnings("ignore", message="(?!each row)")
        trainer.train()
    with pytest.warns(UserWarning, match=r"shared_prefix: auto\): dropout of 0\.1"):
        make_sft(peft_config=adapters, max_steps=1).train()
    with pytest.raises(SharedPrefixError, match=r"shared_prefix: true.*dropout of 0\.1"):
        make_sft(peft_config=adapters, max_steps=1, shared_prefix=True).train()


def test_prompts_that_are_learned_go_the_plain_way(make_sft):
    trainer = make_sft(completion_only_loss=False, max_steps=1)
    tokens = count_tokens(trainer)
    trainer.train()
    other = make_sft(trl.SFTTrainer, trl.SFTConfig, completion_only_loss=False, max_steps=1)
    expected = count_tokens(other)
    other.train()
    assert tokens == expected
    assert furthest(trainer.model, other.model) == 0
    with pytest.raises(SharedPrefixError, match="a row without a prompt"):
        make_sft(completion_only_loss=False, max_steps=1, shared_prefix=True).train()


# -- answers to a prompt together -------------------------------------------------------------------------------------


def test_prompts_are_kept_together_in_another_order_each_epoch(make_sft, answered):
    order = torch.randperm(len(answered), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [answered[number] for number in order]
    trainer = make_sft(rows=rows, train_sampling_strategy="random", keep_prompts_together=True)
    sampler = trainer._get_train_sampler()
    seen = []
    for epoch in (0.0, 1.0, 0.0):
        trainer.state.epoch = epoch
        numbers = list(sampler)
        assert sorted(numbers) == list(range(len(rows))) == list(range(len(sampler)))
        blocks = [sorted(numbers[start : start + 4]) for start in range(0, len(rows), 4)]
        assert sorted(blocks) == sorted(rows_by_prompt(rows))
        seen.append(numbers)
    assert seen[0] == seen[2] != seen[1]


def test_by_default_rows_come_in_trls_order(make_sft):
    orders = []
    for cls, config in ((SFTTrainer, SFTConfig), (trl.SFTTrainer, trl.SFTConfig)):
        trainer = make_sft(cls, config, train_sampling_strategy="random")
        orders.append([batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()])
    assert orders[0] == orders[1]


def test_an_order_of_its_own_is_not_mixed_with_others(tiny_model, tmp_path):
    texts = Dataset.from_dict({"text": ["a", "b"]})
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, keep_prompts_together=True)
    with pytest.raises(ValueError, match="keep_prompts_together: expected train_dataset to have rows of a task"):
        SFTTrainer(str(tiny_model), args, train_dataset=texts)
    with pytest.raises(ValueError, match="keep_prompts_together shuffles prompts: expected train_sampling_strategy"):
        SFTConfig("x", use_cpu=True, bf16=False, keep_prompts_together=True, train_sampling_strategy="sequential")
