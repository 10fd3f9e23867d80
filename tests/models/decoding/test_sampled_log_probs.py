"""The loop tells log-probabilities of a rollout as transformers' shows them. The rest is tested where it is used."""

import pytest
from rollout_cases import complete, inputs_of, spread_model
from transformers import LogitsProcessorList

from models.decoding.custom_generate import Decoding
from models.decoding.drafts.drafting import Drafting
from models.decoding.drafts.store import DraftStore
from models.decoding.sampled_log_probs import SampledLogProbs


@pytest.mark.parametrize("options", [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.3}])
def test_the_loop_tells_what_transformers_shows(options):
    model, inputs, decoding = spread_model("qwen2_vl", 1.5), inputs_of("qwen2_vl", "groups"), Decoding()
    found = []
    for way in (decoding, None):
        noted = SampledLogProbs(options["temperature"])
        complete(model, inputs, way, logits_processor=LogitsProcessorList([noted]), **options)
        found.append(noted.of_completions(decoding.last.ids))
    for ids, told, shown in zip(decoding.last.ids, *found, strict=True):
        assert len(told) == len(ids)
        assert told == pytest.approx(shown, abs=2e-5)


def test_a_processor_that_only_notes_changes_nothing():
    """Nor does it keep a rollout from drafts."""
    model, inputs = spread_model("qwen2_vl"), inputs_of("qwen2_vl", "groups")
    drafted = Decoding(drafting=Drafting(DraftStore((2,)), 2))
    expected, _ = complete(model, inputs, drafted)
    noted = LogitsProcessorList([SampledLogProbs(1.0)])
    assert complete(model, inputs, drafted, logits_processor=noted)[0] == expected
    assert drafted.last.counts.accepted > 0
