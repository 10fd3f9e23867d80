"""The doctor of GRPO: each cause is planted in a rollout that was as it should be, and named; sound ones are left."""

import copy
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from places import ROOT

from models.families.loading import load_processor, load_vlm
from models.families.registry import family_of_processor
from trainers.diagnosis import causes
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.causes import Cause
from trainers.diagnosis.explanations import SURE, State, Trials, checkpoint_folders
from trainers.diagnosis.log_probs import UPDATE, as_drawn_by_update, of_update
from trainers.diagnosis.methods.grpo import diagnose, move_temperature, sampling_of
from trainers.diagnosis.prompts import compare_prompts, rendered
from trainers.diagnosis.rollout import Observed, Prompts, Sampled, observe
from trainers.diagnosis.sampling_options import check_ids


@pytest.fixture(scope="module")
def sound(diagnosed):
    """A trainer, its rows and a rollout of them."""
    trainer, rows = diagnosed()
    torch.manual_seed(0)
    return trainer, rows, observe(trainer, TransformersRollouts(), rows, sampling_of(trainer))


def named(trainer: Any, observed: Observed, *folders: str) -> set[Cause]:
    return {finding.cause for finding in diagnose(trainer, observed, folders) if finding.verdict == "wrong"}


def copied(observed: Observed) -> Observed:
    batch = {key: value.clone() if torch.is_tensor(value) else value for key, value in observed.batch.items()}
    sampled = [copy.copy(one) for one in observed.sampled]
    return Observed(observed.rows, sampled, batch, observed.sampling, config=observed.config)


@contextmanager
def with_attributes(thing: Any, **values: Any):
    """A thing with other attributes, for a while."""
    before = {name: getattr(thing, name) for name in values}
    for name, value in values.items():
        setattr(thing, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(thing, name, value)


class Edited(TransformersRollouts):
    """A sampler that changes what it drew, or says of it."""

    def __init__(self, edit: Callable[[Sampled], None] = lambda one: None):
        self.edit = edit

    def generate(self, *args: Any) -> list[Sampled]:
        found = super().generate(*args)
        for one in found:
            self.edit(one)
        return found


def sampled_by(sound, edit: Callable[[Sampled], None] = lambda one: None, **settings: Any) -> Observed:
    """A rollout by another generation configuration, or of a sampler that says something else of it."""
    trainer, rows, _ = sound
    config = copy.copy(trainer.generation_config)
    for name, value in settings.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    told = {**trainer.generation_kwargs, **settings}
    with with_attributes(trainer, generation_config=config, generation_kwargs=told):
        return observe(trainer, Edited(edit), rows, sampling_of(trainer))


RECIPES: dict[str, tuple[dict[str, Any], Cause]] = {
    "min-p, which fits top-p as well": ({"min_p": 0.2}, causes.MIN_P),
    "a cut that few tokens tell of": ({"top_k": 400}, causes.TOP_K),
    "the temperature": ({"temperature": 1.3}, causes.TEMPERATURE),
    "the most likely token": ({"do_sample": False}, causes.OPTION),
    "n-grams": ({"no_repeat_ngram_size": 2}, causes.OPTION),
    "tokens that are never drawn": ({"suppress_tokens": list(range(20, 300))}, causes.OPTION),
}


@pytest.mark.parametrize(("options", "cause"), RECIPES.values(), ids=RECIPES)
def test_generation_kwargs_are_named_alone(options, cause, diagnosed):
    trainer, rows = diagnosed(generation_kwargs=options, beta=0.0)
    observed = observe(trainer, TransformersRollouts(), rows, sampling_of(trainer))
    assert named(trainer, observed) == {cause}


def test_an_end_token_that_is_a_word(sound):
    with with_attributes(sound[0], eos_token_ids=[*sound[0].eos_token_ids, 30]):
        assert causes.ORDINARY_END in named(*sound[::2])


def test_padding_of_the_models_folder_that_is_not_the_tokenizers_is_noted(sound, tmp_path):
    (tmp_path / "generation_config.json").write_text('{"pad_token_id": 30}', encoding="utf-8")
    with with_attributes(sound[0].model.config, name_or_path=str(tmp_path)):
        assert [(one.verdict, one.cause) for one in check_ids(sound[0])] == [("note", causes.PADDING)]


def without_log_probs(one: Sampled) -> None:
    one.log_probs = None


def test_the_page_lists_every_cause_with_its_remedy():
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = [value for value in vars(causes).values() if isinstance(value, Cause)]
    assert [one.name for one in rows if f"| {one.name} |" not in page or f"| {one.remedy} |" not in page] == []


# -- sound ------------------------------------------------------------------------------------------------------------


def test_a_sound_rollout_is_left(sound):
    trainer, _, observed = sound
    findings = list(diagnose(trainer, observed))
    assert [finding for finding in findings if finding.verdict != "ok"] == []
    assert len(findings) >= 18


SOUND: dict[str, dict[str, Any]] = {
    "a temperature that both sides know": {"temperature": 0.7},
    "no reference": {"beta": 0.0},
    "adapters": {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0},
    "16 bits": {"bf16": True},
    "old log-probabilities": {"gradient_accumulation_steps": 3, "steps_per_generation": 2},
    "unshared prompts": {"shared_prefix": "false", "mask_truncated_completions": True},
}


@pytest.mark.parametrize("changes", SOUND.values(), ids=SOUND)
def test_nothing_is_wrong_with(changes, diagnosed):
    trainer, rows = diagnosed(**changes)
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    observed = observe(trainer, TransformersRollouts(), rows, sampling_of(trainer))
    assert [finding for finding in diagnose(trainer, observed) if finding.verdict == "wrong"] == []


def test_a_rare_token_of_a_sure_model_is_no_cause(sound):
    """It is five standard deviations off, but no other distribution makes it much likelier."""
    trainer, _, observed = sound
    rows = [0, 4]
    trials = Trials(trainer, observed, rows, told=False)
    logits = []
    for row in rows:
        ids = torch.tensor(observed.sampled[row].completion_ids)
        logits.append(torch.zeros(len(ids), 900).scatter(1, ids[:, None], 30.0))
    logits[0][0] = 0.0
    logits[0][0, next(token for token in range(800) if token != observed.sampled[0].completion_ids[0])] = 11.5
    trials._logits[UPDATE.runs] = logits
    state = State(UPDATE, as_drawn_by_update(observed.sampling, 1.0))
    assert trials.cost(state) > 10
    assert trials.surprise(state) < SURE
    logits[0][1:8] = logits[0][0]
    assert trials.surprise(state) > SURE


def test_the_update_of_a_stored_step_has_its_temperature(diagnosed):
    changes = {"temperature": 1.4, "temperature_schedule": "linear", "temperature_end": 0.4, "max_steps": 5}
    trainer, _ = diagnosed(**changes)
    move_temperature(trainer, None)
    assert trainer.temperature == 1.4
    move_temperature(trainer, 2)
    assert trainer.temperature == pytest.approx(0.9)


# -- what the sampler does --------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict[str, Any], Cause]] = {
    "top-p": ({"top_p": 0.8}, causes.TOP_P),
    "top-k": ({"top_k": 20}, causes.TOP_K),
    "min-p": ({"min_p": 0.05}, causes.MIN_P),
    "a repetition penalty": ({"repetition_penalty": 1.2}, causes.REPETITION),
    "another temperature": ({"temperature": 1.4}, causes.TEMPERATURE),
}
tell = pytest.mark.parametrize("edit", [lambda one: None, without_log_probs], ids=["told", "not told"])


@tell
@pytest.mark.parametrize(("settings", "cause"), SETTINGS.values(), ids=SETTINGS)
def test_another_way_to_draw_is_named_also_by_what_was_drawn_alone(settings, cause, edit, sound):
    assert named(sound[0], sampled_by(sound, edit, **settings)) == {cause}


def test_two_causes_have_their_shares(sound):
    observed = sampled_by(sound, temperature=1.4, top_p=0.8)
    findings = [one for one in diagnose(sound[0], observed) if one.verdict == "wrong"]
    assert {one.cause for one in findings[1:]} == {causes.TEMPERATURE, causes.TOP_P}
    assert findings[0].cause == findings[1].cause


def test_log_probabilities_before_the_cut_hide_it_no_more(sound):
    """An engine that draws by top-p, and tells what each token had before: both sides agree, and are wrong."""
    trainer, rows, _ = sound
    observed = sampled_by(sound, top_p=0.8)
    for one, own in zip(observed.sampled, of_update(trainer, observed), strict=True):
        one.log_probs = own.tolist()
    assert named(trainer, observed) == {causes.TOP_P}


def test_vision_tokens_in_completions(sound):
    def edit(one: Sampled) -> None:
        one.completion_ids[0] = sound[2].sampling.suppressed[0]

    assert causes.VISION_TOKENS in named(sound[0], sampled_by(sound, edit))


def test_a_completion_that_just_stops(sound):
    def edit(one: Sampled) -> None:
        one.completion_ids, one.log_probs = one.completion_ids[:9], one.log_probs[:9]

    assert named(sound[0], sampled_by(sound, edit)) == {causes.NO_END}


def test_shifted_log_probabilities(sound):
    def edit(one: Sampled) -> None:
        one.log_probs = [*one.log_probs[1:], one.log_probs[-1]]

    assert causes.SHIFTED in named(sound[0], sampled_by(sound, edit))


# -- another model in the sampler -------------------------------------------------------------------------------------


def sampled_with(sound, model: Any, edit: Callable[[Sampled], None] = lambda one: None) -> Observed:
    """A rollout by another model than the trainer's."""
    with with_attributes(sound[0], model_wrapped=model):
        return sampled_by(sound, edit)


def fresh(trainer: Any) -> Any:
    """The model that a trainer was made of; a copy of the trainer's own would run through that one's head."""
    return load_vlm(trainer.model.config.name_or_path, device="cpu")[0]


@pytest.fixture(scope="module")
def trained(sound, tmp_path_factory):
    """A model that has made steps since, and the folder of its run."""
    trainer = sound[0]
    model, run = fresh(trainer), tmp_path_factory.mktemp("run")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "language_model" in name:
                weight.add_(0.7 * weight.std() * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(run / "checkpoint-20")
    trainer.processing_class.save_pretrained(run / "checkpoint-20")
    return model, run


@tell
def test_old_weights(edit, sound, trained):
    model, run = trained
    observed = sampled_with(sound, model, edit)
    folders = checkpoint_folders([run], "")
    assert [Path(folder).name for folder in folders] == ["checkpoint-20"]
    assert named(sound[0], observed, *folders) == {causes.STALE}
    if observed.sampled[0].log_probs is not None:
        assert causes.STALE in named(sound[0], observed)  # weights that are not at hand


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_precision(dtype, sound):
    assert named(sound[0], sampled_with(sound, fresh(sound[0]).to(dtype))) == {causes.PRECISION}


def test_a_sampler_that_does_not_see_the_image(sound):
    trainer, rows, _ = sound

    class Blind(TransformersRollouts):
        def generate(self, trainer: Any, generate: Any, prompts: Prompts, size: int) -> list[Sampled]:
            pad = trainer.processing_class.image_token_id
            texts = [[token for token in ids if token != pad] for ids in prompts.ids]
            return super().generate(trainer, generate, Prompts(texts, None, {}), size)

    observed = observe(trainer, Blind(), rows, sampling_of(trainer))
    assert named(trainer, observed) == {causes.DROPPED_IMAGE, causes.UNSEEN}
    for one in observed.sampled:
        one.prompt_ids = one.images = None
    assert named(trainer, observed) == {causes.UNSEEN}


def test_adapters_that_the_sampler_lacks(diagnosed):
    trainer, rows = diagnosed(use_peft=True, lora_r=4, lora_dropout=0.0, beta=0.0)
    base = fresh(trainer)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    with with_attributes(trainer, model_wrapped=base):
        observed = observe(trainer, TransformersRollouts(), rows, sampling_of(trainer))
    assert named(trainer, observed) == {causes.ADAPTER}


# -- another processor in the sampler ---------------------------------------------------------------------------------


def read_by(sound, processor: Any) -> Observed:
    """The sound rollout, of which the sampler says that it read what this processor makes of the rows."""
    observed = copied(sound[2])
    for one, row in zip(observed.sampled, observed.rows, strict=True):
        text = rendered(processor, row, add_generation_prompt=True)
        inputs = processor(text=[text], images=row["images"], return_tensors="pt")
        one.prompt_ids = inputs["input_ids"][0].tolist()
        one.images = family_of_processor(processor).split(inputs)
    return observed


def test_other_pixel_bounds(sound, lively_model):
    observed = read_by(sound, load_processor(str(lively_model), min_pixels=64 * 64, max_pixels=64 * 64))
    assert named(sound[0], observed) == {causes.PIXEL_BOUNDS}


def test_images_that_are_normalised_otherwise(sound, lively_model):
    processor = load_processor(str(lively_model), max_pixels=1024)
    processor.image_processor.image_mean = [0.0, 0.0, 0.0]
    assert named(sound[0], read_by(sound, processor)) == {causes.PIXELS}


def test_another_chat_template(sound, lively_model):
    processor = load_processor(str(lively_model), max_pixels=1024)
    processor.chat_template = "Answer well.\n" + processor.chat_template
    assert named(sound[0], read_by(sound, processor)) == {causes.TEMPLATE}


@pytest.mark.parametrize(
    ("one", "cause"),
    [
        ([3, 9, 9, 4, 9, 5, 6], None),
        ([3, 9, 4, 9, 9, 5, 6], causes.IMAGE_ORDER),
        ([3, 9, 4, 9, 5, 6], causes.PIXEL_BOUNDS),
        ([4, 9, 5, 6], causes.TRUNCATED),
        ([3, 9, 9], causes.TRUNCATED),
        ([3, 4, 5, 6], causes.DROPPED_IMAGE),
        ([3, 3, 9, 9, 4, 9, 5, 6], causes.DOUBLE_BOS),
        ([7, 9, 9, 4, 9, 5, 6], causes.TEMPLATE),
    ],
)
def test_why_prompts_are_unequal(one, cause):
    processor = SimpleNamespace(image_token_id=9)
    assert compare_prompts("prompts", [one], [[3, 9, 9, 4, 9, 5, 6]], processor).cause == cause


@pytest.mark.parametrize(
    ("written", "instead", "cause"),
    [
        ("{%- if add_generation_prompt", "{%- if false", causes.NO_GENERATION_PROMPT),
        ("{%- for message", "{{ messages | length }}{%- for message", causes.NO_PREFIX),
    ],
)
def test_templates_that_cannot_be_trained_with(written, instead, cause, sound):
    trainer, rows, _ = sound
    processor = trainer.processing_class
    assert written in processor.chat_template
    with with_attributes(processor, chat_template=processor.chat_template.replace(written, instead, 1)):
        assert cause in named(trainer, sampled_by(sound))


def test_a_turn_that_is_closed_by_a_token_that_does_not_stop_sampling(sound):
    trainer = sound[0]
    with with_attributes(trainer, eos_token_ids=[trainer.processing_class.tokenizer.pad_token_id]):
        assert causes.WRONG_END in named(trainer, sampled_by(sound))


def test_double_bos(sound):
    trainer, tokenizer = sound[0], sound[0].processing_class.tokenizer
    bos = tokenizer.convert_tokens_to_ids("<|im_start|>")
    observed = copied(sound[2])
    for one in observed.sampled:
        one.prompt_ids = [bos, *one.prompt_ids]
    with with_attributes(tokenizer, bos_token="<|im_start|>"):
        assert named(trainer, observed) == {causes.DOUBLE_BOS}


# -- what the update gets ---------------------------------------------------------------------------------------------


def test_a_shifted_mask(sound):
    observed = copied(sound[2])
    observed.batch["completion_mask"] = observed.batch["completion_mask"].roll(1, dims=1)
    observed.batch["completion_mask"][:, 0] = 0
    assert causes.MASK in named(sound[0], observed)


def test_a_dropped_image(sound):
    """As TRL drops the images of a whole batch where tokens and patches of one row do not match."""
    observed = copied(sound[2])
    for name in ("pixel_values", "image_grid_thw", "num_images"):
        del observed.batch[name]
    observed.batch["mm_token_type_ids"].zero_()
    assert causes.DROPPED_IMAGE in named(sound[0], observed)


def test_completions_that_were_tokenized_anew(sound):
    observed = copied(sound[2])
    observed.batch["completion_ids"][:, 3] = 7
    assert causes.OTHER_TOKENS in named(sound[0], observed)


def test_dropout(diagnosed):
    trainer, rows = diagnosed(beta=0.0)
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    observed = observe(trainer, TransformersRollouts(), rows, sampling_of(trainer))
    assert named(trainer, observed) == {causes.DROPOUT}


def test_another_reference(sound):
    observed = copied(sound[2])
    observed.batch["ref_per_token_logps"] += 0.01
    assert named(sound[0], observed) == {causes.REFERENCE}
