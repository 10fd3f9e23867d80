"""The loop in the place of the one of `generate`: the same completions from the same seed, the generator included."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from prefix_cases import Batch, prompts_of
from rollout_cases import (
    ENDS,
    MAKERS,
    MOST,
    SAMPLERS,
    SHAPES,
    assert_as_generate,
    complete,
    inputs_of,
    put,
    spread,
    spread_model,
)
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.streams import OwnNumbers
from models.tiny import build_model, build_tokenizer

CELLS = list(product(MAKERS, SHAPES, SAMPLERS))


def drafted() -> Decoding:
    return Decoding(drafting=Drafting(DraftStore((3, 2)), 4))


def lengths(decoding: Decoding) -> set[int]:
    return set(map(len, decoding.last.ids))


@pytest.mark.parametrize("family", MAKERS)
def test_every_family_completes_as_by_generate(family):
    decoding = Decoding()
    assert_as_generate(spread_model(family), inputs_of(family, "groups"), decoding)
    assert len(lengths(decoding)) > 1  # rows left at several steps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_way_to_sample_gives_the_same_tokens(sampler):
    assert_as_generate(spread_model("qwen2_vl"), inputs_of("qwen2_vl", "mixed order"), **SAMPLERS[sampler])


@pytest.mark.parametrize("shape", SHAPES)
def test_drafts_change_no_token_of_any_batch(shape):
    """Also the second time, when what comes is known but for contexts that were met twice."""
    way = drafted()
    assert_as_generate(spread_model("qwen2_vl"), inputs_of("qwen2_vl", shape), way, way)
    counts = way.last.counts
    assert counts.accepted > 0.6 * counts.drafted > 0
    assert counts.forwards <= 8


@pytest.mark.slow
@pytest.mark.parametrize(("family", "shape", "sampler"), CELLS)
def test_every_family_batch_and_way_to_sample(family, shape, sampler):
    """Also beyond the windows of the tiny Gemmas."""
    way, model, inputs = drafted(), spread_model(family), inputs_of(family, shape)
    assert_as_generate(model, inputs, Decoding(), way, way, max_new_tokens=32, **SAMPLERS[sampler])


# -- ends of rows -----------------------------------------------------------------------------------------------------


class EveryNinth(StoppingCriteria):
    """Ends a row, as a criterion of one's own may."""

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -1] % 9 == 0


class Eleven(StoppingCriteria):
    """Ends all rows where any of them has a token that another has: looks at all rows."""

    def __call__(self, input_ids, scores, **kwargs):
        alike = len(set(input_ids[:, -1].tolist())) < len(input_ids)
        return torch.full((len(input_ids),), alike and input_ids.shape[1] % 11 == 0)


ENDINGS = {
    "one new token": {"max_new_tokens": 1},
    "all rows end at the first token": {"eos_token_id": [*range(264)]},
    "one token that ends rows": {"eos_token_id": 35},
    "no token that ends rows": {"eos_token_id": None},
    "neither that nor padding": {"eos_token_id": None, "pad_token_id": None},
    "no padding": {"pad_token_id": None},
    "not before the fifth": {"min_new_tokens": 5},
    "length with the prompt": {"max_new_tokens": None, "max_length": 60},
    "own criterion": {"stopping_criteria": StoppingCriteriaList([EveryNinth()])},
    "own criterion alone": {"stopping_criteria": StoppingCriteriaList([EveryNinth()]), "eos_token_id": None},
    "own criterion of all rows": {"stopping_criteria": StoppingCriteriaList([Eleven()])},
    "three completions each": {"num_return_sequences": 3},
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_end_where_generate_ends_them(ending):
    """Also the second time, when drafts are right."""
    way = drafted()
    assert_as_generate(spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups"), way, way, **ENDINGS[ending])


# -- processors of one's own ------------------------------------------------------------------------------------------


class OthersLast(LogitsProcessor):
    """Makes the last tokens of all other rows likelier: looks at all rows."""

    def __call__(self, input_ids, scores):
        last = input_ids[:, -1]
        return scores + 2 * torch.nn.functional.one_hot(last, scores.shape[1]).sum(dim=0)


PROCESSORS = {
    "of all rows": (OthersLast(), "min-p"),
    "top-p that keeps six": (TopPLogitsWarper(0.1, min_tokens_to_keep=6), "min-p"),
    "top-k that cuts little": (TopKLogitsWarper(3, filter_value=-3.0), "plain"),
    "top-p before temperature": (TopPLogitsWarper(0.1), "top-k"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_processors_of_ones_own_are_applied(name):
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "mixed order")
    processor, sampler = PROCESSORS[name]
    own = {"logits_processor": LogitsProcessorList([processor]), **SAMPLERS[sampler]}
    found = assert_as_generate(model, inputs, **own)
    assert found != complete(model, inputs, **SAMPLERS[sampler])[0]


# -- adapters and number formats --------------------------------------------------------------------------------------


def with_adapter(family: str, **settings):
    """A model of which unmerged adapters change every completion."""
    lora = LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, **{"target_modules": "all-linear", **settings})
    torch.manual_seed(0)
    return get_peft_model(spread(MAKERS[family]().eval()), lora).eval()


def as_generate_with_adapter(family: str, **settings) -> None:
    model, inputs = with_adapter(family, **settings), inputs_of(family, "groups")
    own = assert_as_generate(model, inputs, drafted())
    with model.disable_adapter():
        assert assert_as_generate(model, inputs, drafted()) != own
    model.merge_adapter()
    assert_as_generate(model, inputs, drafted())


def test_adapters_are_part_of_the_model_merged_or_not():
    as_generate_with_adapter("qwen2_vl")


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKERS)
def test_adapters_of_every_family(family):
    as_generate_with_adapter(family)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"target_modules": ["lm_head", "embed_tokens"]}, {"modules_to_save": ["lm_head"]}]
)
def test_adapters_of_the_output_layer(settings):
    model = with_adapter("qwen2_vl", **{"target_modules": ["q_proj"], **settings})
    assert_as_generate(model, inputs_of("qwen2_vl", "groups"), drafted())


def assert_close_by_rounding(model, inputs) -> None:
    """Rounding differs, so most rows are as by `generate`, and those that are not part at a near tie."""
    expected, _ = complete(model, inputs)
    found, _ = complete(model, inputs, drafted())
    prompt = inputs["input_ids"].shape[1]
    same = [one[prompt : prompt + 6] == other[prompt : prompt + 6] for one, other in zip(found, expected, strict=True)]
    assert sum(same) >= 0.7 * len(same)


def test_weights_in_bfloat16():
    model = spread(MAKERS["qwen2_vl"]().eval()).bfloat16()
    assert_close_by_rounding(model, prompts_of(SHAPES["groups"], model))


def test_autocast_to_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert_close_by_rounding(spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups"))


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_of_every_family(family, autocast):
    model = spread_model(family) if autocast else spread(MAKERS[family]().eval()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_close_by_rounding(model, prompts_of(SHAPES["groups"], model))


@pytest.mark.slow
def test_weights_of_four_bits(tmp_path):
    wide = build_model(build_tokenizer(["a"], 300), hidden_size=128, layers=2, vision_width=32)
    spread(wide).save_pretrained(tmp_path)
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["model.visual", "lm_head"]
    )
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=four).eval()
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert_close_by_rounding(model, inputs_of("qwen2_vl", "groups"))


def test_a_model_in_training_without_dropout():
    model = spread(MAKERS["qwen2_vl"]().train())
    model.gradient_checkpointing_enable()
    assert_as_generate(model, inputs_of("qwen2_vl", "one group"), max_new_tokens=8)


# -- the other stream -------------------------------------------------------------------------------------------------


def test_the_own_stream_gives_the_same_with_drafts_and_other_tokens_than_generate():
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups")
    plain, after = complete(model, inputs, Decoding("own"))
    way = Decoding("own", Drafting(DraftStore((3, 2)), 4))
    for _ in range(2):
        again, state = complete(model, inputs, way)
        assert again == plain
        assert torch.equal(state, after)
    assert way.last.counts.accepted > 0
    expected, state = complete(model, inputs)
    assert plain != expected
    assert not torch.equal(state, after)


def by_numbers(numbers: torch.Tensor, rows: Batch, decoding: Decoding) -> list[list[int]]:
    """Completions of a batch of which each row has these numbers, (rows, steps)."""

    def given(self, batch, most, device):
        self._numbers = numbers

    model = spread_model("qwen2_vl")
    with put(OwnNumbers, "__init__", given):
        complete(model, prompts_of(rows, model), decoding)
    return decoding.last.ids


def test_by_the_own_stream_a_row_depends_on_nothing_but_its_numbers():
    """Six ways: in two orders of the batch and some rows by themselves, without drafts and with them."""
    whole = SHAPES["mixed order"]
    numbers = torch.rand(len(whole.rows), MOST, generator=torch.Generator().manual_seed(6))
    expected = by_numbers(numbers, whole, Decoding("own"))
    backwards = replace(whole, rows=whole.rows[::-1])
    for drafting in (None, Drafting(DraftStore((3, 2)), 4)):
        way = Decoding("own", drafting)
        assert by_numbers(numbers, whole, way) == expected
        assert by_numbers(numbers.flip(0), backwards, way) == expected[::-1]
        for row in (0, 3):
            assert by_numbers(numbers[row, None], replace(whole, rows=whole.rows[row : row + 1]), way) == [
                expected[row]
            ]


def test_completions_end_with_the_token_that_ended_them_and_padding_follows():
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups")
    decoding = Decoding()
    found, _ = complete(model, inputs, decoding)
    prompt, pad = inputs["input_ids"].shape[1], model.config.text_config.pad_token_id
    width = max(lengths(decoding))
    for row, ids in zip(found, decoding.last.ids, strict=True):
        assert row[prompt:] == ids + [pad] * (width - len(ids))
        assert not set(ids[:-1]) & set(ENDS)
        assert ids[-1] in ENDS or len(ids) == MOST
