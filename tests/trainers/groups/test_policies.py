"""Policies of stored groups: batches of ragged groups score every candidate as it would be scored alone."""

import pytest
import torch
from PIL import Image
from stored_groups import WIDTH
from unknown_families import write_unknown

from data.candidate_groups import Candidate
from data.candidates.embedding_table import EmbeddingTable
from data.io.records import RecordError
from models.families.base import TOKEN_TYPES
from models.families.loading import image_reader, load_processor, load_vlm
from models.generation import prepare_inputs
from models.selectors.pointer import PointerSelector, PointerSelectorConfig
from models.shared_prefix.sharing import SharedPrefix, reason_not_shared
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import StoredGroup, load_stored_groups
from trainers.groups.policies import prepare_groups
from trainers.groups.selector_policy import SelectorPolicy
from trainers.groups.vlm_policy import VLMPolicy


@pytest.fixture
def tables(pointer_groups):
    return [EmbeddingTable.load(pointer_groups / f"{name}.safetensors") for name in ("queries", "examples")]


@pytest.fixture
def groups(pointer_groups):
    return load_stored_groups(GroupArguments(dataset_name=str(pointer_groups)), "train")


def test_a_selector_scores_ragged_groups_as_it_scores_each_alone(tables, groups):
    policy = SelectorPolicy(*tables)
    selector = PointerSelector(PointerSelectorConfig(embedding_size=WIDTH, hidden_size=16)).eval()
    items = prepare_groups(policy, groups)
    assert len({len(item["pointers"]) for item in items}) > 2
    assert len({len(item["pool"]) for item in items}) > 1
    together = policy.group_log_probs(selector, policy.collate(items))
    assert together.mask.sum(dim=2).amax() == 2
    for row, (group, item) in enumerate(zip(groups, items, strict=True)):
        for column, candidate in enumerate(group.candidates):
            pool = torch.from_numpy(tables[1].values[tables[1].rows(group.pool)])
            pointer = [group.pool.index(example) for example in candidate.pointer]
            query = torch.from_numpy(tables[0].values[[group.id]])
            alone = selector(query, pool, torch.arange(len(pool))[None], torch.tensor([[pointer]]))
            found = together.log_probs[row, column][together.mask[row, column]]
            torch.testing.assert_close(found, alone.log_probs[0, 0], atol=1e-5, rtol=0)
        assert not together.mask[row, len(item["pointers"]) :].any()
    torch.testing.assert_close(together.cross_entropy, -together.log_probs)


def test_a_batch_holds_every_example_once(tables, groups):
    policy = SelectorPolicy(*tables)
    batch = policy.collate(prepare_groups(policy, groups))
    used = {example for group in groups for example in group.pool}
    assert batch["example_embeddings"].shape == (len(used), WIDTH)
    assert batch["index"].tolist() == list(range(len(groups)))


def test_every_parameter_of_a_selector_has_a_gradient_in_every_batch(tables, pointer_groups):
    """One-example pointers do not use the history, but DDP and ZeRO wait for its gradient."""
    groups = load_stored_groups(GroupArguments(dataset_name=str(pointer_groups), shots=[1]), "train")
    policy = SelectorPolicy(*tables)
    selector = PointerSelector(PointerSelectorConfig(embedding_size=WIDTH, hidden_size=16))
    policy.group_log_probs(selector, policy.collate(prepare_groups(policy, groups))).log_probs.sum().backward()
    gradients = {name: parameter.grad for name, parameter in selector.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert (gradients["query_update_gate.weight"] == 0).all()
    assert gradients["query_proj.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": 99}, ["group 99", "query_table", "id 99 is not in the table"]),
        ({"pool": ["e0", "e1", "nobody"]}, ["example_table", "'nobody' is not in the table"]),
        (
            {"candidates": [Candidate(pointer=["e7"], reward=1.0)]},
            ["field 'pointer': 'e7' is not in the group's pool"],
        ),
    ],
)
def test_what_a_selector_cannot_find_is_named(tables, changes, expected):
    given = {"id": 0, "where": "groups.jsonl: group 99", "pool": ["e0", "e1"], "rewards": [1.0], "accuracies": [1.0]}
    group = StoredGroup(**{**given, "candidates": [Candidate(pointer=["e0"])], **changes})
    with pytest.raises(RecordError) as caught:
        prepare_groups(SelectorPolicy(*tables), [group])
    for part in expected:
        assert part in str(caught.value)


def test_tables_of_different_encoders_are_refused(tables):
    queries = EmbeddingTable([0], tables[0].values[:1, :4])
    with pytest.raises(RecordError, match="made by different encoders"):
        SelectorPolicy(queries, tables[1])


# -- vision-language models -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vlm(tiny_model, completion_groups):
    """Model, policy and groups."""
    processor = load_processor(str(tiny_model), max_pixels=1024)
    model, _ = load_vlm(str(tiny_model), device="cpu", dtype="float32")
    groups = load_stored_groups(GroupArguments(dataset_name=str(completion_groups), policy="vlm"), "train")
    return model, VLMPolicy(processor, image_reader(processor)), groups


def log_probs_alone(model, policy, group, text: str) -> torch.Tensor:
    """One prompt and one completion, without padding, by the model's plain forward."""

    bounds = policy.bounds
    images = [bounds.open(image) for image in group.columns["images"]]
    inputs = dict(prepare_inputs(policy.processor, [group.columns["prompt"]], [images]))
    tokenizer = policy.processor.tokenizer
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]])
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in {*TOKEN_TYPES}.intersection(inputs):
        inputs[name] = torch.cat([inputs[name], torch.zeros_like(ids)], dim=1)
    logits = model(**inputs).logits[0, prompt - 1 : -1]
    return logits.log_softmax(dim=-1).gather(1, ids[0, :, None]).squeeze(1)


def test_a_vlm_scores_ragged_groups_as_it_scores_each_completion_alone(vlm):
    model, policy, groups = vlm
    batch = policy.collate(prepare_groups(policy, groups))
    assert {len(group.columns["images"]) for group in groups} == {0, 1}
    assert (batch["attention_mask"][:, 0] == 0).any()
    assert not batch["completion_mask"][:, -1].all()
    check_scores(model, policy, groups, batch)


def check_scores(model, policy, groups, batch) -> None:
    """Each completion of a batch of all groups has the scores that it has alone."""
    with torch.no_grad():
        together = policy.group_log_probs(model, batch)
        for row, group in enumerate(groups):
            assert together.mask[row].any(dim=1).sum() == len(group.candidates)
            for column, candidate in enumerate(group.candidates):
                alone = log_probs_alone(model, policy, group, candidate.completion)
                found = together.log_probs[row, column][together.mask[row, column]]
                torch.testing.assert_close(found, alone, atol=2e-5, rtol=0)


def test_a_model_of_a_family_that_is_not_known_gets_all_that_its_processor_makes_of_images(
    completion_groups, tmp_path
):
    """Mistral 3's pictures are filled up to the largest of a batch, and `image_sizes` says what is real of them."""
    folder = str(write_unknown("mistral3", tmp_path))
    processor = load_processor(folder)
    model, _ = load_vlm(folder, device="cpu", dtype="float32")
    policy = VLMPolicy(processor, image_reader(processor))
    groups = load_stored_groups(GroupArguments(dataset_name=str(completion_groups), policy="vlm"), "train")
    batch = policy.collate(prepare_groups(policy, groups))
    shown = sum(len(group.columns["images"]) * len(group.candidates) for group in groups)
    assert {name: len(value) for name, value in batch["images"].items()} == {
        "pixel_values": shown,
        "image_sizes": shown,
    }
    with pytest.warns(UserWarning, match="'mistral3'"):
        check_scores(model, policy, groups, batch)


def test_images_of_a_prompt_go_through_the_processor_once(vlm):
    model, policy, groups = vlm
    batch = policy.collate(prepare_groups(policy, groups))
    images = sum(len(group.columns["images"]) for group in groups)
    seen = sum(len(group.columns["images"]) * len(group.candidates) for group in groups)
    assert len(batch["image_grid_thw"]) == images
    assert sum(map(len, policy.images_of_rows(model.config, batch))) == seen > images


def test_other_pictures_change_the_scores(vlm):
    """Otherwise the tests above would pass without any picture."""
    model, policy, groups = vlm
    batch = policy.collate(prepare_groups(policy, groups))
    with torch.no_grad():
        before = policy.group_log_probs(model, batch).log_probs
        after = policy.group_log_probs(model, {**batch, "pixel_values": -batch["pixel_values"]}).log_probs
    moved = (before - after).abs().amax(dim=(1, 2)) > 1e-4
    assert moved.tolist() == [bool(group.columns["images"]) for group in groups]


def test_completions_have_the_tokens_that_their_model_would_say(tiny_family):
    """Of Idefics3, with the space behind `Assistant:`, which stored completions may lack."""
    processor = load_processor(str(tiny_family("idefics3")))
    policy = VLMPolicy(processor, image_reader(processor))
    candidates = [Candidate(completion=text) for text in ("yes", " yes", "no")]
    group = StoredGroup(1, "groups.jsonl: group 1", candidates, [1.0] * 3, [1.0] * 3, None, {"prompt": "x"})
    written = [processor.tokenizer.decode(ids) for ids in policy.prepare(group)["completions"]]
    assert written == [" yes<end_of_utterance>", " yes<end_of_utterance>", " no<end_of_utterance>"]


@pytest.mark.parametrize("family", ["internvl", "idefics3"])
def test_of_tiles_a_completion_scores_as_it_does_alone(tiny_family, family):
    """Prompts of two, no, one image, of which the first stands in two prompts; a second prompt repeats."""
    folder = str(tiny_family(family))
    model, processor = load_vlm(folder, device="cpu", dtype="float32")
    policy = VLMPolicy(processor, image_reader(processor))
    images = [Image.effect_noise((64, 40), 80).convert("RGB"), Image.new("RGB", (40, 64), "red")]
    shown, texts = (images, [], images[:1]), (["a", "bcd", "e f"], ["red"], ["a", "no"])
    items = [
        policy.prepare(
            StoredGroup(
                number,
                f"groups.jsonl: group {number}",
                [Candidate(completion=text) for text in texts[number]],
                [1.0] * len(texts[number]),
                [1.0] * len(texts[number]),
                None,
                {"prompt": [{"role": "user", "content": "what is it?"}], "images": shown[number]},
            )
        )
        | {"index": number}
        for number in range(3)
    ]
    assert reason_not_shared(model) is None
    with torch.no_grad():
        together = policy.group_log_probs(model, policy.collate(items))
        policy.sharing = SharedPrefix("false")
        plain = policy.group_log_probs(model, policy.collate(items))
        torch.testing.assert_close(together.log_probs, plain.log_probs, atol=5e-6, rtol=0)
        for row, item in enumerate(items):
            for column, ids in enumerate(item["completions"]):
                one = policy.collate([{**item, "completions": [ids]}])
                alone = policy.group_log_probs(model, one).log_probs[0, 0]
                found = plain.log_probs[row, column][: len(ids)]
                torch.testing.assert_close(found, alone, atol=2e-5, rtol=0)
                if item["images"]:  # else pictures would make no difference here
                    other = policy.group_log_probs(model, one | {"pixel_values": -one["pixel_values"]})
                    assert (other.log_probs[0, 0] - alone).abs().max() > 1e-4


def test_special_tokens_in_a_completion_are_refused(vlm):
    _, policy, groups = vlm
    group = StoredGroup(7, "groups.jsonl: group 7", [Candidate(completion="a<|image_pad|>")], [1.0], [1.0], None, {})
    with pytest.raises(RecordError, match=r"group 7: field 'completion': .*<\|image_pad\|>"):
        prepare_groups(policy, [group])
