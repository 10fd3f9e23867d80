"""The earlier system's selector, on its weights: the same logits, log-probabilities, choices and cross-entropy.

Losses over groups, gradients and training steps of the same cases: tests/trainers.
"""

import pytest
import torch
import torch.nn.functional as F
from selector_oracle import load_oracle_selector, oracle_cases

CASES = oracle_cases()
EXACT = {"rtol": 0, "atol": 2e-5}
"""Logits are up to 10: 2e-5 is a few units in the last place of float32."""


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


def test_all_cases_are_there():
    assert len(CASES) == 35


@each(CASES)
def test_teacher_forced_logits_and_log_probs(case):
    output = load_oracle_selector(case)(**case.inputs(), return_logits=True)
    torch.testing.assert_close(output.logits, case.tensors["out/teacher_logits"], **EXACT)
    torch.testing.assert_close(output.log_probs.sum(-1), case.tensors["out/log_probs"], rtol=1e-6, atol=5e-5)
    assert output.mask.all()
    ratio = (output.log_probs.sum(-1) - case.tensors["in/old_log_probs"]).exp()
    torch.testing.assert_close(ratio, case.tensors["out/ratio"], rtol=1e-4, atol=1e-6)


@each(CASES)
def test_cross_entropy_with_label_smoothing(case):
    smoothing = case.config["label_smoothing"]
    output = load_oracle_selector(case)(**case.inputs(), label_smoothing=smoothing)
    first_beam = output.cross_entropy[:, 0].mean().item()
    assert first_beam == pytest.approx(case.scalars["ce_first_beam_loss"], rel=2e-6, abs=1e-5)
    logits, labels = case.tensors["out/teacher_logits"], case.tensors["in/beam_labels"].long()
    expected = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(output.cross_entropy.flatten(), expected, rtol=1e-6, atol=5e-5)


@each(CASES)
def test_greedy_choice(case):
    selector, inputs = load_oracle_selector(case), case.inputs()
    given = (inputs["query_embeddings"], inputs["example_embeddings"], inputs["pools"], case.config["shot_num"])
    if "k_lt_shots" in case.flags:  # the earlier system repeated an example without a word
        with pytest.raises(ValueError, match="query 0 has 3 candidates, which is fewer than 4 shots"):
            selector.select(*given)
        return
    chosen = selector.select(*given)
    assert torch.equal(chosen.pointers[:, 0], case.tensors["out/greedy_predictions"].long())
    output = selector(**{**inputs, "pointers": chosen.pointers}, return_logits=True)
    torch.testing.assert_close(output.logits[:, 0], case.tensors["out/greedy_logits"], **EXACT)
    scores = output.logits[:, 0].gather(-1, chosen.pointers[:, 0, :, None]).squeeze(-1)
    torch.testing.assert_close(scores, case.tensors["out/greedy_scores"], **EXACT)
    torch.testing.assert_close(chosen.log_probs, output.log_probs.sum(-1), rtol=0, atol=1e-5)


@each([case for case in CASES if case.config["shot_num"] == 1])
def test_beams_of_one_example(case, oracle):
    """Beams of more examples followed a model without its history: not to be reproduced."""
    described = next(row for row in oracle("losses")["cases"] if row["id"] == case.id)["beam_search"]
    inputs = case.inputs()
    pools = (inputs["query_embeddings"], inputs["example_embeddings"], inputs["pools"])
    found = load_oracle_selector(case).select(*pools, 1, method="beam", num_beams=len(described[0]))
    assert found.pointers.tolist() == [[beam["pointer"] for beam in beams] for beams in described]
    expected = torch.tensor([[beam["logprob"] for beam in beams] for beams in described])
    torch.testing.assert_close(found.log_probs, expected, rtol=0, atol=2e-5)


@each([case for case in CASES if case.config["shot_num"] > 1 and "k_lt_shots" not in case.flags])
def test_history_is_in_the_second_step(case):
    """The earlier generator of RL candidates ignored it."""
    inputs = case.inputs()
    logits = load_oracle_selector(case)(**inputs, return_logits=True).logits[:, 0, 1]
    stateless = case.tensors["out/rlgen_step_logits_after_first"]
    assert (logits - stateless).abs().amax(-1).gt(1e-3).all()
