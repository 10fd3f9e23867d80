"""Sampler against trainer: what is measured, on which tokens, and when it stops a run."""

import math
from types import SimpleNamespace

import pytest
import torch
from grpo_runs import make_trainer, questions
from transformers import GenerationConfig

from models.families.loading import load_vlm
from trainers.grpo import GRPOConfig, GRPOTrainer
from trainers.mixins.sampling_difference import (
    Differences,
    SampledLogProbs,
    SamplingDifference,
    SamplingDifferenceError,
    changed_sampling,
    check_sampling,
    noting_log_probs,
    without_own_sampling,
)
from trainers.setup.recipes import RecipeError

MEAN, LARGEST = (f"sampling/sampling_logp_difference/{name}" for name in ("mean", "max"))
SHORT = {"per_device_train_batch_size": 4, "max_completion_length": 4}


def lengths(completion_ids, **columns) -> list[float]:
    return [float(sum(ids) % 7) for ids in completion_ids]


class Planted(GRPOTrainer):
    """Its sampler gives log-probabilities that are off by so much at each optimizer step."""

    off_by: tuple[float, ...] = ()

    def _generate_single_turn(self, *args, **kwargs):
        completion_ids, log_probs = super()._generate_single_turn(*args, **kwargs)
        off_by = self.off_by[self.state.global_step]
        return completion_ids, [[value + off_by for value in of_row] for of_row in log_probs]


def planted(model, tmp_path, off_by, **settings):
    trainer = make_trainer(str(model), tmp_path, lengths, cls=Planted, max_steps=len(off_by), **SHORT | settings)
    trainer.off_by = off_by
    return trainer


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# -- what transformers samples with -----------------------------------------------------------------------------------


def test_what_the_models_folder_says_of_sampling_is_left_out(tiny_model):
    model = load_vlm(str(tiny_model), device="cpu")[0]
    own = model.generation_config
    own.min_p, own.no_repeat_ngram_size, own.do_sample, ends = 0.9, 2, False, own.eos_token_id
    with without_own_sampling(model):
        config, _ = model._prepare_generation_config(GenerationConfig(temperature=0.7))
        assert (config.min_p, config.no_repeat_ngram_size or 0) == (None, 0)
        assert (config.eos_token_id, config.temperature) == (ends, 0.7)
    assert model.generation_config is own


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_noting_gives_what_generate_sampled_with_and_changes_no_token(tiny_model, temperature):
    model, processor = load_vlm(str(tiny_model), device="cpu")
    ids = torch.tensor([processor.tokenizer("question one?")["input_ids"]] * 12)
    ends = list(range(20, 60))
    options = {"max_new_tokens": 9, "suppress_tokens": [7], "eos_token_id": ends, "pad_token_id": 0}
    config = GenerationConfig(do_sample=True, temperature=temperature, top_k=0, **options)

    def generate(**more):
        torch.manual_seed(3)
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **more)

    plain = generate(return_dict_in_generate=True, output_scores=True)
    state = torch.get_rng_state()
    noted = SampledLogProbs(temperature)
    with noting_log_probs(model, noted):
        found = generate()
    assert torch.equal(found, plain.sequences)
    assert torch.equal(torch.get_rng_state(), state)
    assert "generate" not in vars(model)

    sampled = found[:, ids.shape[1] :]
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in sampled.tolist()]
    assert len(set(lengths)) > 2  # rows end early
    expected = torch.stack(plain.scores, dim=1).log_softmax(dim=-1).gather(2, sampled.unsqueeze(2)).squeeze(2)
    rows = [row[:length] for row, length in zip(sampled.tolist(), lengths, strict=True)]
    for number, log_probs in enumerate(noted.of_completions(rows)):
        assert log_probs == pytest.approx(expected[number, : lengths[number]].tolist(), abs=1e-5)


def test_nothing_is_told_of_completions_that_were_not_noted():
    noted = SampledLogProbs(1.0)
    assert noted.of_completions([[1, 2], []]) is None  # as with a `generate` of a program's own
    noted(torch.tensor([[5], [5]]), torch.zeros(2, 8))
    assert noted.of_completions([[1, 2], []]) is None
    assert noted.of_completions([[1], [1], [1]]) is None
    assert noted.of_completions([[1], []]) == [[pytest.approx(-math.log(8))], []]


def test_rollouts_by_transformers_agree_with_the_trainer(tiny_model, tmp_path):
    trainer = make_trainer(str(tiny_model), tmp_path, lengths, generation_kwargs={}, temperature=1.3, **SHORT)
    trainer.generation_config.suppress_tokens = None  # which samples from the rest of the distribution
    trainer.train()
    assert len(logged(trainer, MEAN)) == 2
    assert max(logged(trainer, LARGEST)) < 1e-4
    assert min(logged(trainer, MEAN)) > 0


def test_a_stale_policy_is_not_measured(tiny_model, tmp_path):
    """Two updates on each half of a rollout: only the first are of it, at the weights that sampled it."""
    settings = {"num_iterations": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1, "max_steps": 8}
    trainer = make_trainer(str(tiny_model), tmp_path, lengths, learning_rate=0.1, **SHORT | settings)
    trainer.generation_config.suppress_tokens = None
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if MEAN in entry] == [1, 2, 5, 6]
    assert max(logged(trainer, LARGEST)) < 1e-3


def test_tokens_that_count():
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),  # ends after two tokens
        "tool_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]),  # a tool's result
        "old_per_token_logps": torch.tensor([[-1.0, -9.0, -2.0, -3.0], [-1.0, -1.0, -9.0, -9.0]]),
    }
    sampled = torch.tensor([[-1.5, 0.0, -2.0, float("nan")], [-1.0, -0.75, 0.0, 0.0]])
    trainer = SimpleNamespace(_differences=Differences())
    SamplingDifference._compare(trainer, sampled, inputs)
    assert trainer._differences == Differences(total=0.75, tokens=4, largest=0.5)


# -- the limit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("off_by", "settings", "trained"),
    [
        ((0.3, 0.3, 0.3, 0.0), {}, 2),  # three steps in a row
        ((0.3, 0.3, 0.0, 0.3), {}, 4),  # one in between is not
        ((0.0, 1.2), {}, 1),  # a gross one
        ((0.3, 0.3, 0.3), {"max_sampling_difference": 0.5}, 3),
        ((3.0, 3.0, 3.0), {"max_sampling_difference": None}, 3),
        ((3.0, 3.0, 3.0), {"max_sampling_difference": 0}, 3),
    ],
)
def test_when_a_run_is_stopped(tiny_model, tmp_path, off_by, settings, trained):
    trainer = planted(tiny_model, tmp_path, off_by, **settings)
    if trained == len(off_by):
        trainer.train()
    else:
        with pytest.raises(SamplingDifferenceError, match=r"expected at most max_sampling_difference \(0\.1\)"):
            trainer.train()
    assert trainer.state.global_step == trained
    assert logged(trainer, MEAN)[:trained] == pytest.approx(off_by[:trained], abs=0.05)


def test_the_message_names_what_was_found_and_what_to_do(tiny_model, tmp_path):
    trainer = planted(tiny_model, tmp_path, (2.0,), generation_kwargs={"temperature": 0.7, "top_k": 0})
    with pytest.raises(SamplingDifferenceError) as error:
        trainer.train()
    for part in (
        "step 1: ",
        " nats a token (mean; largest ",
        "temperature: 0.7",
        "vlm-posttrain doctor --config RECIPE",
    ):
        assert part in str(error.value)


def test_a_resumed_run_counts_on(tiny_model, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1}
    with pytest.raises(SamplingDifferenceError):
        planted(tiny_model, tmp_path, (0.3,) * 4, **settings).train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    with pytest.raises(SamplingDifferenceError, match="step 3: .*, 3 steps in a row"):
        planted(tiny_model, tmp_path, (0.3,) * 4, **settings).train(resume_from_checkpoint=True)


# -- sampling from a part of the distribution -------------------------------------------------------------------------

PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0, "temperature": 0.8}
CHANGES = [
    ({"top_p": 0.9}, {}, {"top_p": 0.9}),
    ({"top_k": 20, "min_p": 0.1}, {}, {"top_k": 20, "min_p": 0.1}),
    ({"repetition_penalty": 1.1}, {}, {"repetition_penalty": 1.1}),
    ({}, {"top_p": 0.5, "typical_p": 0.9}, {"top_p": 0.5, "typical_p": 0.9}),
    ({"top_p": 0.9}, {"top_p": 1.0}, {}),
    ({}, {"temperature": 0.5}, {"temperature": 0.5}),
    ({}, {"temperature": 0.8, "top_k": -1, "bad_words": ["x"]}, {}),
    ({"min_p": 0.0}, None, {}),
    ({}, {"min_tokens": 4, "logit_bias": {7: 2.0}}, {"min_tokens": 4, "logit_bias": {7: 2.0}}),
    ({}, {"min_tokens": 0, "logit_bias": {}, "guidance_scale": 1}, {}),
    ({"vllm_structured_outputs_regex": "a+"}, {}, {"vllm_structured_outputs_regex": "a+"}),
]


def arguments(own=None, generation_kwargs=None, use_vllm=True, correction=True) -> SimpleNamespace:
    return SimpleNamespace(
        **PLAIN | (own or {}),
        generation_kwargs=generation_kwargs,
        use_vllm=use_vllm,
        vllm_importance_sampling_correction=correction,
    )


@pytest.mark.parametrize(("own", "generation_kwargs", "expected"), CHANGES)
def test_settings_that_change_the_distribution(own, generation_kwargs, expected):
    assert changed_sampling(arguments(own, generation_kwargs)) == expected


def test_wrong_importance_ratios_are_refused_and_other_bias_is_said(capsys):
    with pytest.raises(RecipeError, match="top_p: 0.9: vLLM gives log-probabilities of the distribution that it samp"):
        check_sampling(arguments({"top_p": 0.9}), only_checked=False)
    check_sampling(arguments(), only_checked=True)
    check_sampling(arguments({"top_p": 0.9}, use_vllm=False), only_checked=False)  # the trainer says it
    assert capsys.readouterr().err == ""
    for uses in ({"use_vllm": False}, {"correction": False}):
        check_sampling(arguments({"top_p": 0.9}, **uses), only_checked=True)
        assert "warning: top_p: 0.9: completions are sampled from another" in capsys.readouterr().err


def test_from_python_it_is_a_warning(tiny_model, tmp_path):
    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", top_p=0.9, num_generations=2)
    with pytest.warns(UserWarning, match="top_p: 0.9: completions are sampled from another distribution"):
        GRPOTrainer(str(tiny_model), lengths, args, questions(2))
