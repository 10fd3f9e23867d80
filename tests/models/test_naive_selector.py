"""The selector and the straightforward arithmetic that it is measured against give the same numbers and gradients."""

import pytest
import torch
from selector_variants import WIDTH, build, draw

from benchmarks.naive_selector import NaiveSelector


def pair(**options):
    ours = build({"history": "gate"}, **options).double()
    return ours, NaiveSelector(ours).double()


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("examples", [40, 11], ids=["mostly own examples", "shared examples"])
def test_log_probs_and_gradients(heads, layers, examples):
    ours, naive = pair(num_heads=heads, num_layers=layers)
    batch = draw([10] * 4, examples=examples)
    queries, table = batch.queries.double(), batch.examples.double()
    generator = torch.Generator().manual_seed(0)
    pools = torch.stack([torch.randperm(examples, generator=generator)[:10] for _ in range(4)])
    pointers = torch.rand(4, 5, 10, generator=generator).topk(3).indices
    weights = torch.rand(4, 5, generator=generator).double()
    found = ours(queries, table, pools, pointers).log_probs.sum(-1)
    expected = naive.log_probs(queries, table[pools], pointers)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)  # softmax in float32
    (weights * found).sum().backward()
    (weights * expected).sum().backward()
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_beams_and_log_probs_of_samples():
    ours, naive = pair()
    batch = draw([9] * 3)
    pools = torch.stack([pool[pool >= 0] for pool in batch.pools])
    queries, examples = batch.queries.double(), batch.examples.double()
    beams = ours.select(queries, examples, pools, 3, method="beam", num_beams=5)
    drawn = ours.select(queries, examples, pools, 3, method="sample", num_samples=6, temperature=1.5)
    scored = naive.log_probs(queries, examples[pools], drawn.pointers)
    torch.testing.assert_close(drawn.log_probs.double(), scored.detach(), rtol=1e-6, atol=1e-5)
    for query in range(3):
        expected = naive.beams(queries[query], examples[pools[query]], 3, 5)
        assert beams.pointers[query].tolist() == [pointer for pointer, _ in expected]
        assert beams.log_probs[query].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)


def test_samples_of_the_straightforward_side_do_not_repeat():
    _, naive = pair()
    examples = draw([9]).examples.double()
    for _ in range(20):
        pointer = naive.sample(torch.randn(WIDTH).double(), examples, 3, 1.3)
        assert len(set(pointer)) == 3
