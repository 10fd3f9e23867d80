"""Every variant of the selectors: learns, scores and chooses consistently, and takes batches of any shape."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_variants import FEW_VARIANTS, POINTER_VARIANTS, VARIANTS, WIDTH, build, draw, variant_name

import models.selectors.pool_batches
from models.selectors.base import Selector
from models.selectors.gpt2 import GPT2SelectorConfig
from models.selectors.pointer import PointerSelector, PointerSelectorConfig

SIZES = [7, 4, 3, 5]


def each(variants):
    return pytest.mark.parametrize("variant", variants, ids=variant_name)


@each(VARIANTS)
def test_a_training_step_moves_every_parameter_and_lowers_the_loss(variant):
    selector, batch = build(variant).train(), draw(SIZES)
    optimizer = torch.optim.SGD(selector.parameters(), lr=1e-3)
    before = {name: parameter.detach().clone() for name, parameter in selector.named_parameters()}
    first = selector(*batch.inputs, batch.pointers).cross_entropy.sum()
    first.backward()
    assert all(parameter.grad.isfinite().all() for parameter in selector.parameters())
    torch.nn.utils.clip_grad_norm_(selector.parameters(), 10.0)
    optimizer.step()
    still = [name for name, parameter in selector.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []
    assert selector(*batch.inputs, batch.pointers).cross_entropy.sum() < first


@each(VARIANTS)
def test_sequences_are_scored_as_step_by_step(variant):
    """`teacher_logits` of a class may be quicker than that of `Selector`, and gives the same."""
    selector, batch = build(variant), draw(SIZES)
    steps = batch.pointers.shape[2] + selector.config.stop
    encoded = selector.encode(*batch.inputs)
    plain = Selector.teacher_logits(selector, encoded, batch.pointers, steps)
    torch.testing.assert_close(selector.teacher_logits(encoded, batch.pointers, steps), plain, rtol=1e-5, atol=1e-4)


@each(VARIANTS)
@pytest.mark.parametrize("search", [{"method": "greedy"}, {"method": "beam", "num_beams": 4}, {"method": "sample"}])
def test_choices_have_the_log_probs_of_forward(variant, search):
    selector, batch = build(variant), draw(SIZES)
    options = {"num_samples": 5, "temperature": 1.7, "generator": torch.Generator().manual_seed(1), **search}
    for shots in (1, 3):
        chosen = selector.select(*batch.inputs, shots, **options)
        scored = selector(*batch.inputs, chosen.pointers).log_probs.sum(-1)
        exist = chosen.log_probs > float("-inf")
        assert exist[:, 0].all()
        torch.testing.assert_close(chosen.log_probs[exist], scored[exist], rtol=0, atol=1e-5)
        assert (chosen.pointers[~exist] == -1).all()
        for sequence in chosen.pointers[exist].tolist():
            picked = [position for position in sequence if position >= 0]
            assert len(set(picked)) == len(picked) >= 1


@each(FEW_VARIANTS)
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), shots=st.integers(1, 4), seed=st.integers(0, 999))
def test_a_query_is_scored_as_if_it_were_alone(variant, sizes, shots, seed):
    selector, batch = build(variant), draw(sizes, shots=shots, seed=seed)
    together = selector(*batch.inputs, batch.pointers, label_smoothing=0.1)
    for query in range(len(sizes)):
        alone = batch.alone(query)
        single = selector(*alone.inputs, alone.pointers, label_smoothing=0.1)
        steps = single.mask.shape[-1]
        assert torch.equal(together.mask[query, :, :steps], single.mask[0])
        assert not together.mask[query, :, steps:].any()
        for name in ("log_probs", "cross_entropy"):
            torch.testing.assert_close(together[name][query, :, :steps], single[name][0], rtol=1e-6, atol=2e-6)
            assert (together[name][query][~together.mask[query]] == 0).all()


@each(FEW_VARIANTS)
def test_pools_of_a_shared_table_can_be_copied_or_not(variant, monkeypatch):
    selector, batch = build(variant), draw([7, 6, 7, 5, 7, 6], examples=10)
    outputs = []
    for limit in (0, 1000):
        monkeypatch.setattr(models.selectors.pool_batches, "DENSE_LIMIT", limit)
        selector.zero_grad()
        output = selector(*batch.inputs, batch.pointers)
        output.log_probs.sum().backward()
        outputs.append((output.log_probs.detach(), [parameter.grad.clone() for parameter in selector.parameters()]))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@each(FEW_VARIANTS)
def test_what_is_read_once_serves_any_number_of_choices(variant):
    selector, batch = build(variant), draw(SIZES)
    examples = selector.encode_examples(batch.examples)
    encoded = selector.encode(batch.queries, examples, batch.pools)
    for search in ({}, {"method": "beam"}, {"method": "sample", "num_samples": 3}):
        generators = [torch.Generator().manual_seed(3) for _ in range(2)]
        again = selector.choose(encoded, 2, **search, generator=generators[0])
        fresh = selector.select(*batch.inputs, 2, **search, generator=generators[1])
        assert torch.equal(again.pointers, fresh.pointers)
        torch.testing.assert_close(again.log_probs, fresh.log_probs)
    scored, plain = selector.score(encoded, batch.pointers), selector(*batch.inputs, batch.pointers)
    torch.testing.assert_close(scored.log_probs, plain.log_probs)


@each([variant for variant in POINTER_VARIANTS if variant["stop"] and variant["num_layers"] == 1])
def test_probabilities_of_each_step_add_up_to_one(variant):
    selector, batch = build(variant), draw(SIZES)
    logits = selector(*batch.inputs, batch.pointers, return_logits=True).logits
    stop = logits[..., -1]
    assert (stop[:, :, 0] == float("-inf")).all()
    assert stop[:, :, 1:].isfinite().all()
    padded = (batch.pools < 0)[:, None, None].expand(*logits.shape[:3], -1)
    assert (logits[..., :-1][padded] == float("-inf")).all()
    chosen = batch.pointers[:, 0, :1, None]  # the first choice, at the second step
    probability = logits[:, 0, 1:2].softmax(-1).gather(-1, chosen)
    assert (probability < 1e-20).all()


def test_label_smoothing_is_that_of_torch():
    selector, batch = build({"scorer": "additive"}), draw([6, 6])
    output = selector(*batch.inputs, batch.pointers, label_smoothing=0.2, return_logits=True)
    for query in range(2):
        kept = batch.pools[query] >= 0
        place = kept.cumsum(0) - 1
        for sequence, step in output.mask[query].nonzero().tolist():
            target = place[batch.pointers[query, sequence, step]]
            logits = output.logits[query, sequence, step][kept]
            expected = F.cross_entropy(logits, target, label_smoothing=0.2)
            torch.testing.assert_close(output.cross_entropy[query, sequence, step], expected)
    plain = selector(*batch.inputs, batch.pointers)
    torch.testing.assert_close(plain.cross_entropy, -plain.log_probs)


def test_stop_is_a_step_of_sequences_that_could_have_gone_on():
    selector = build({"stop": True, "max_shots": 3})
    queries, examples, pools = draw([5]).inputs
    places = (pools[0] >= 0).nonzero().flatten().tolist()
    pointers = torch.tensor([[[places[0], places[1], places[2]], [places[0], -1, -1], [-1, -1, -1]]])
    output = selector(queries, examples, pools, pointers, return_logits=True)
    taken = [[True, True, True, False], [True, True, False, False], [False] * 4]
    assert output.mask[0].tolist() == taken
    stop = output.logits[0, 1, 1].log_softmax(-1)[-1]
    torch.testing.assert_close(output.log_probs[0, 1, 1], stop)


def test_a_pool_that_is_used_up_leaves_only_stop():
    selector, batch = build({"stop": True}), draw([2], shots=2)
    chosen = selector.select(*batch.inputs, 2, method="beam", num_beams=9)
    longest = chosen.pointers[0][(chosen.pointers[0] >= 0).all(-1)]
    assert len(longest) == 2
    output = selector(*batch.inputs, longest[None])
    assert output.mask.all()
    assert output.log_probs[0, :, 2].tolist() == [0.0, 0.0]


def test_dropout_only_in_training():
    selector, plain = build({"num_layers": 2}, dropout=0.5), build({"num_layers": 2})
    batch = draw(SIZES)
    scored = [selector(*batch.inputs, batch.pointers).log_probs for _ in range(2)]
    assert torch.equal(*scored)
    assert torch.equal(scored[0], plain(*batch.inputs, batch.pointers).log_probs)
    selector.train()
    assert not torch.equal(selector(*batch.inputs, batch.pointers).log_probs, scored[0])


@each(FEW_VARIANTS)
def test_bfloat16(variant):
    selector, batch = build(variant, temperature=1.0), draw(SIZES)
    exact = selector(*batch.inputs, batch.pointers).log_probs
    with torch.autocast("cpu", torch.bfloat16):
        mixed = selector(*batch.inputs, batch.pointers).log_probs
    half = selector.bfloat16()(batch.queries.bfloat16(), batch.examples.bfloat16(), batch.pools, batch.pointers)
    for rounded in (mixed, half.log_probs):
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.25)
    chosen = selector.select(batch.queries.bfloat16(), batch.examples.bfloat16(), batch.pools, 2, method="beam")
    assert chosen.log_probs.dtype == torch.float32


@each(FEW_VARIANTS)
def test_weights_come_from_the_seed_alone(variant):
    state = torch.random.get_rng_state()
    first, again, other = (build(variant, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_an_untrained_bi_encoder_ranks_about_like_the_embeddings():
    config = PointerSelectorConfig(embedding_size=64, hidden_size=64, num_layers=0)
    generator = torch.Generator().manual_seed(0)
    queries, examples = (F.normalize(torch.randn(n, 64, generator=generator), dim=-1) for n in (50, 20))
    pools = torch.arange(20).expand(50, -1)
    chosen = PointerSelector(config).select(queries, examples, pools, 1).pointers[:, 0, 0]
    assert (chosen == (queries @ examples.T).argmax(-1)).float().mean() > 0.7


@pytest.mark.parametrize("config_class", [PointerSelectorConfig, GPT2SelectorConfig])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"histroy": "gru"}, "histroy: unknown; .* has embedding_size, hidden_size"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1, found 0"),
        ({"hidden_size": 256.0}, "hidden_size: expected int, found 256.0"),
        ({"stop": 1}, "stop: expected bool, found 1"),
        ({"num_heads": 3}, "num_heads: expected a divisor of hidden_size 256, found 3"),
        ({"temperature": 0}, "temperature: expected more than 0, found 0.0"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, found 1.0"),
        ({"stop": True, "max_shots": 1}, "max_shots: expected at least 2 in a model that can stop, found 1"),
    ],
)
def test_a_wrong_configuration_is_an_error(config_class, options, message):
    with pytest.raises(ValueError, match=message):
        config_class(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": "lstm"}, "history: expected one of none, gate, gru, found 'lstm'"),
        ({"scorer": "mlp"}, "scorer: expected one of cosine, additive, bilinear, found 'mlp'"),
        ({"num_layers": -1}, "num_layers: expected at least 0, found -1"),
    ],
)
def test_a_variant_that_is_not_there_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        PointerSelectorConfig(**options)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        (
            "queries",
            torch.zeros(2, WIDTH + 1),
            r"query_embeddings: expected \(rows, embedding_size = 12\), found \(2, 13\)",
        ),
        ("examples", torch.zeros(20), r"example_embeddings: expected .* found \(20,\)"),
        ("queries", torch.zeros(3, WIDTH), "pools: expected one for each of 3 queries, found 2"),
        ("pools", torch.tensor([[0, 1, -1], [20, 1, 2]]), "query 1: expected rows 0 to 19 or -1, found 20"),
        ("pools", torch.tensor([[0, -2, 1], [2, 1, 0]]), "query 0: expected rows 0 to 19 or -1, found -2"),
        ("pools", torch.tensor([[0, 1, 2], [3, 4, 3]]), "query 1 has example 3 twice"),
        ("pools", torch.tensor([[0, 1, 2], [-1, -1, -1]]), "query 1 has no candidates"),
        ("pools", torch.zeros(2, 3), "pools: expected whole numbers"),
        ("pointers", torch.tensor([[[0]], [[2]]]), "query 1, sequence 0, step 0: 2 is outside of the pool"),
        ("pointers", torch.tensor([[[3]], [[0]]]), "query 0, sequence 0, step 0: 3 is outside of the pool"),
        ("pointers", torch.tensor([[[-2]], [[0]]]), "query 0, sequence 0, step 0: -2 is outside of the pool"),
        ("pointers", torch.tensor([[[0, -1, 1]], [[0, 1, -1]]]), "query 0, sequence 0, step 2: 1 comes after -1"),
        ("pointers", torch.tensor([[0], [1]]), "pointers: expected whole numbers"),
        ("pointers", torch.zeros(2, 1, 1), "pointers: expected whole numbers"),
    ],
)
def test_a_wrong_batch_is_an_error(part, value, message):
    batch = {
        "queries": torch.zeros(2, WIDTH),
        "examples": torch.zeros(20, WIDTH),
        "pools": torch.tensor([[0, 1, 2], [3, 4, -1]]),
        "pointers": torch.tensor([[[0]], [[1]]]),
    }
    with pytest.raises(ValueError, match=message):
        build({})(*{**batch, part: value}.values())


@pytest.mark.parametrize("variant", [{"stop": True}, {"gpt2": True}], ids=variant_name)
def test_more_than_max_shots_is_an_error(variant):
    selector, batch = build(variant, max_shots=2), draw([5], shots=3)
    with pytest.raises(ValueError, match="pointers: expected at most max_shots = 2 examples, found 3"):
        selector(*batch.inputs, batch.pointers)
    with pytest.raises(ValueError, match="shots: expected at most max_shots = 2, found 3"):
        selector.select(*batch.inputs, 3)
