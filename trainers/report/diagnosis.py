"""What the reward model of a run decides by, for its report: whether it looks at the image, above all."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from data.preferences import PreferenceRecord
from rewards.diagnosis.questions import Diagnosis
from rewards.diagnosis.table import COLUMNS, TITLE, format_table, notes, table_rows
from rewards.scoring.model_scores import ScoreRequest
from trainers.report.fixed_samples import undisturbed, weights_are_spread
from trainers.run.console import say, warn

SOURCE = "evaluation rows, at the end"


class PreferenceDiagnosis(TrainerCallback):
    """Asks the model that is kept about held-out preferences with their images taken away, when training is over.

    Only the main process works; weights that are spread over processes (ZeRO-3, FSDP) cannot be asked by one of them.

    Args:
        trainer: with `scores_of(records)`, and `diagnosis_rows` in its settings: preferences that are looked at, at
            most.
        records: held out.
    """

    def __init__(self, trainer: Any, records: Sequence[PreferenceRecord]):
        self.trainer = trainer
        self.records = records

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if weights_are_spread(self.trainer):
            say("note: the report has no diagnosis: the weights are spread over the processes")
            return
        try:
            with undisturbed(self.trainer):
                figures = self._figures()
        except Exception as error:  # a report is not worth a run
            warn(f"the report has no diagnosis: {type(error).__name__}: {error}")
            return
        if figures:
            record = self.trainer.run_record
            record.diagnoses = [{"source": SOURCE, "name": record.name, "figures": figures}]
            say(format_table(figures))

    def _figures(self) -> dict[str, Any]:
        requests = [
            ScoreRequest(record.prompt(), tuple(record.images), tuple(record.response)) for record in self.records
        ]
        ranks = [record.human_ranking for record in self.records]
        diagnosis = Diagnosis(requests, ranks, self.trainer.args.diagnosis_rows, seed=self.trainer.args.seed)
        scores = self._scores([requests[row] for row in diagnosis.rows])
        return diagnosis.figures(dict(zip(diagnosis.rows, scores, strict=True)), self._scores(diagnosis.requests))

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        size = self.trainer.args.per_device_eval_batch_size
        records = [_as_record(request) for request in requests]
        batches = [records[start : start + size] for start in range(0, len(records), size)]
        return [scores for batch in batches for scores in self.trainer.scores_of(batch)]


def _as_record(request: ScoreRequest) -> PreferenceRecord:
    """A record whose ranking says nothing; its parts have been checked."""
    return PreferenceRecord.model_construct(
        query=request.prompt,
        images=list(request.images),
        response=list(request.responses),
        human_ranking=[0.0] * len(request.responses),
    )


def diagnosis_table(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """An entry of `RunRecord.diagnoses` as report and card show it: a table as those of `trainers.report.held_out`,
    with `notes`."""
    figures = diagnosis["figures"]
    return {
        "source": diagnosis["source"],
        "title": TITLE,
        "columns": list(COLUMNS),
        "rows": table_rows(figures),
        "notes": notes(figures),
    }
