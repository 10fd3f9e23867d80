"""Stored completions in the doctor: what a file tells, what it cannot, and what is planted in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data.io.records import RecordError, write_jsonl
from trainers.diagnosis import causes
from trainers.diagnosis.backends.stored import StoredRollouts
from trainers.diagnosis.backends.transformers import TransformersRollouts
from trainers.diagnosis.findings import Finding
from trainers.diagnosis.methods.grpo import diagnose, sampling_of
from trainers.diagnosis.rollout import observe
from trainers.report.sampled_tokens import tokens_of_first_group
from trainers.report.samples import SampleGroup, SampleLog


@pytest.fixture(scope="module")
def stored(diagnosed, tmp_path_factory) -> tuple[Any, list[dict], Path]:
    """A trainer, its rows, and a file of samples as a run stores them before its first step."""
    trainer, rows = diagnosed(num_generations=6, max_completion_length=30)
    torch.manual_seed(0)
    batch = observe(trainer, TransformersRollouts(), rows, sampling_of(trainer)).batch
    log = SampleLog(tmp_path_factory.mktemp("run"))
    texts = trainer.processing_class.batch_decode(batch["completion_ids"][:6], skip_special_tokens=True)
    tokens = tokens_of_first_group(batch, 6, rows[0]["id"])
    log.add(0, SampleGroup(rows[0]["prompt"], rows[0]["images"], texts, [{}] * 6, tokens=tokens))
    return trainer, rows, log.path


def found(trainer: Any, rows: list[dict], path: Path, model: str = "") -> list[Finding]:
    backend = StoredRollouts(path, model)
    chosen = backend.rows(rows, limit=2)
    observed = observe(trainer, backend, chosen, sampling_of(trainer))
    return [*backend.findings(trainer.temperature), *diagnose(trainer, observed)]


def wrong(findings: list[Finding]) -> set[causes.Cause | None]:
    return {finding.cause for finding in findings if finding.verdict == "wrong"}


def changed(path: Path, folder: Path, **tokens: Any) -> Path:
    """The file with other tokens, or none."""
    sample = json.loads(path.read_text(encoding="utf-8"))
    sample["tokens"] = {**sample["tokens"], **tokens} if tokens else None
    write_jsonl(folder / "samples.jsonl", [sample])
    return folder / "samples.jsonl"


def test_samples_of_the_model_itself_are_left(stored):
    findings = found(*stored)
    assert wrong(findings) == set()
    assert "0 of 1" not in findings[0].found
    told = [finding.check for finding in findings if finding.verdict == "not told"]
    assert told == ["pixels of sampler and update"]


def test_samples_of_another_template_and_of_other_bounds(stored, tmp_path):
    trainer, rows, path = stored
    ids = json.loads(path.read_text(encoding="utf-8"))["tokens"]["prompt_token_ids"]
    pad = trainer.processing_class.image_token_id
    again = changed(path, tmp_path, prompt_token_ids=[ids[1], *ids[1:]])
    assert wrong(found(trainer, rows, again)) == {causes.TEMPLATE}
    more = [token for one in ids for token in ([one] * 4 if one == pad else [one])]
    again = changed(path, tmp_path, prompt_token_ids=more, image_grids=[[1, 8, 8]])
    assert wrong(found(trainer, rows, again)) == {causes.PIXEL_BOUNDS}


def test_samples_without_their_end_token(stored, tmp_path):
    trainer, rows, path = stored
    ids = json.loads(path.read_text(encoding="utf-8"))["tokens"]["token_ids"]
    short = changed(path, tmp_path, token_ids=[one[:11] for one in ids], log_probs=None)
    assert wrong(found(trainer, rows, short)) == {causes.NO_END}
    with pytest.raises(RecordError, match="step 0: expected as many log-probabilities as tokens"):
        StoredRollouts(changed(path, tmp_path, token_ids=[one[:11] for one in ids]))


def test_texts_alone_tell_less_and_say_so(stored, tmp_path):
    trainer, rows, path = stored
    findings = found(trainer, rows, changed(path, tmp_path))
    assert wrong(findings) == set()
    told = {finding.check for finding in findings if finding.verdict == "not told"}
    assert {"end tokens", "prompt tokens of sampler and update", "likelihood of the samples"} <= told


def test_groups_that_were_sampled_at_another_temperature(stored, tmp_path):
    trainer, rows, _ = stored
    candidates = [{"completion": text, "temperature": 0.6} for text in ("yes", "no", "maybe")]
    write_jsonl(tmp_path / "groups.jsonl", [{"id": rows[1]["id"], "candidates": candidates}])
    assert causes.TEMPERATURE in wrong(found(trainer, rows, tmp_path / "groups.jsonl"))


@pytest.mark.parametrize(("folder", "verdict"), [("run/checkpoint-40", "wrong"), ("elsewhere", "ok")])
def test_samples_of_other_steps_than_the_model_of_their_run(folder, verdict, stored, tmp_path):
    """A model of elsewhere, such as a warm start, has made its steps in another run."""
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "samples.jsonl"
    path.write_bytes(stored[2].read_bytes())
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "trainer_state.json").write_text('{"global_step": 40}', encoding="utf-8")
    backend = StoredRollouts(path, str(tmp_path / folder))
    backend.rows(stored[1], limit=2)
    (weights,) = [one for one in backend.findings(1.0) if one.check == "weights of the samples"]
    assert (weights.verdict, weights.found) == (verdict, "after 0 steps")


def test_what_is_no_file_of_samples_is_an_error_that_says_what_is_expected(stored, tmp_path):
    _, rows, path = stored
    write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "prompt": "what?"}])
    with pytest.raises(RecordError, match="expected samples of a run"):
        StoredRollouts(tmp_path / "rows.jsonl")
    other = [{**row, "id": f"other {row['id']}"} for row in rows]
    with pytest.raises(RecordError, match="none of its 1 prompts is a row"):
        StoredRollouts(path).rows(other, limit=4)


def test_unexplained_differences_of_samples_of_another_step_are_put_down_to_it(stored, tmp_path):
    trainer, rows, path = stored
    told = json.loads(path.read_text(encoding="utf-8"))["tokens"]["log_probs"]
    again = changed(path, tmp_path, log_probs=[[value - 0.002 for value in of_row] for of_row in told])
    assert causes.STALE not in wrong(found(trainer, rows, again))
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}', encoding="utf-8")
    assert wrong(found(trainer, rows, again, str(tmp_path))) == {causes.STALE}


def test_other_rows_with_the_same_ids_are_not_the_samples_rows(stored):
    _, rows, path = stored
    other = [{**row, "prompt": [{"role": "user", "content": "Which agents?"}]} for row in rows]
    with pytest.raises(RecordError, match="none of its 1 prompts is a row"):
        StoredRollouts(path).rows(other, limit=4)


def test_tokens_of_another_tokenizer_are_an_error(stored, tmp_path):
    trainer, rows, path = stored
    ids = json.loads(path.read_text(encoding="utf-8"))["tokens"]["token_ids"]
    again = changed(path, tmp_path, token_ids=[[one + 7 for one in of_row] for of_row in ids], log_probs=None)
    with pytest.raises(RecordError, match="of another tokenizer than that of"):
        found(trainer, rows, again)


def test_what_the_run_beside_the_file_says_of_its_sampling(stored, tmp_path):
    trainer, rows, path = stored
    again = changed(path, tmp_path, log_probs=None)
    for top_p, causes_found in ((1.0, set()), (0.95, {causes.TOP_P})):
        (tmp_path / "run.json").write_text(json.dumps({"settings": {"top_p": top_p}}), encoding="utf-8")
        assert wrong(found(trainer, rows, again)) == causes_found


def test_completions_that_were_left_out_of_the_loss_are_left_out_here(stored, tmp_path):
    trainer, rows, path = stored
    tokens = json.loads(path.read_text(encoding="utf-8"))["tokens"]
    ids, told = ([[], *tokens[name][1:]] for name in ("token_ids", "log_probs"))
    again = changed(path, tmp_path, token_ids=ids, log_probs=told)
    assert len(StoredRollouts(again).stored[0].completions) == len(ids) - 1
    assert wrong(found(trainer, rows, again)) == set()
