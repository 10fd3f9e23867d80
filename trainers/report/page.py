"""The report that every run leaves in its output folder: one HTML file with curves, samples, recipe and versions.

`python -m trainers.report` writes it again, with results on data that was held out.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from data.io.records import RecordError, atomic_write
from rewards.diagnosis.picture import draw_diagnosis
from trainers.report.curves import as_svg, describe_figure, draw_figures
from trainers.report.diagnosis import diagnosis_table
from trainers.report.held_out import read_diagnosis, read_held_out
from trainers.report.logged_figures import CARD, PANELS, format_value, last_figures, logged_values
from trainers.report.record import RECORD_FILE, RunRecord, load_record
from trainers.report.samples import SampleLog, StoredSample

REPORT_FILE = "report.html"
CARD_FILE = "README.md"
FIGURES_FOLDER = "figures"
STATE_FILE = "trainer_state.json"
TEMPLATES = Path(__file__).parent / "templates"

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_EMPTY_LINES = re.compile(r"\n(?:[ \t]*\n){4,}")

History = Sequence[Mapping[str, Any]]


def visible(text: str) -> str:
    """A text in which characters that a browser drops or takes for something else are seen: `\\x1c` for U+001C.

    More than three empty lines, as an untrained model may write hundreds, become a line that counts them.
    """
    short = _EMPTY_LINES.sub(lambda found: f"\n[{found[0].count(chr(10)) - 1} empty lines]\n", text)
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), short)


def in_table(text: Any) -> str:
    """A text as a cell of a Markdown table, or as code in a line: no end of line, `|` or backtick of its own."""
    one_line = " ".join(visible(str(text)).split())
    return one_line.replace("`", "'").replace("|", "\\|").replace("<", "&lt;")


def fence(text: str) -> str:
    """The fence of a block of Markdown code that `text` cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _environment(autoescape: bool) -> Any:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=autoescape)
    environment.filters |= {"figure": format_value, "visible": visible, "cell": in_table, "fence": fence}
    return environment


# -- the report -------------------------------------------------------------------------------------------------------


def _spaced(rows: list[StoredSample], count: int) -> list[StoredSample]:
    if len(rows) <= count:
        return rows
    return [rows[round(number * (len(rows) - 1) / (count - 1))] for number in range(count)]


def _fixed_prompts(samples: Sequence[StoredSample]) -> list[list[StoredSample]]:
    """The samples of each prompt that is shown at every step, by step."""
    fixed = sorted(samples, key=lambda sample: (sample.number, sample.step))
    return [list(of_prompt) for _, of_prompt in groupby(fixed, key=lambda sample: sample.number)]


def write_report(output_dir: str | Path, record: RunRecord, history: History, max_samples: int = 6) -> Path:
    """Writes `report.html`, which needs no other file, and each figure as PNG below `figures/`.

    Args:
        history: `trainer.state.log_history`.
        max_samples: groups shown, spread over the run.

    Returns:
        Path of the report.
    """
    output_dir = Path(output_dir)
    kept_step = None if record.kept is None else record.kept.step
    figures = draw_figures(history, record.info.kind, kept_step)
    for title, figure in figures.items():
        _save_picture(figure, output_dir, title)
    diagnoses = [
        (diagnosis_table(one), _draw_diagnosis(output_dir, number, one))
        for number, one in enumerate(record.diagnoses, 1)
    ]
    captions = {panel.title: panel.caption for panel in PANELS}
    log = SampleLog(output_dir)
    samples = log.read()
    batches = [sample for sample in samples if sample.source == "batch"]
    page = (
        _environment(autoescape=True)
        .get_template("report.html.jinja")
        .render(
            record=record,
            info=record.info,
            figures=[
                {"svg": as_svg(figure), "alt": describe_figure(figure), "caption": captions[title]}
                for title, figure in figures.items()
            ],
            diagnoses=diagnoses,
            samples=_spaced(batches, max_samples),
            fixed=_fixed_prompts([sample for sample in samples if sample.source != "batch"]),
            unreadable=log.unreadable,
            final=last_figures(history, kept_step),
        )
    )
    with atomic_write(output_dir / REPORT_FILE) as file:
        file.write(page)
    return output_dir / REPORT_FILE


def _picture(title: str) -> str:
    return f"{title.replace(' ', '_')}.png"


def _save_picture(figure: Any, output_dir: Path, title: str) -> None:
    with atomic_write(output_dir / FIGURES_FOLDER / _picture(title), "wb") as file:
        figure.savefig(file, format="png", dpi=140)


def _draw_diagnosis(output_dir: Path, number: int, diagnosis: Mapping[str, Any]) -> str:
    """The picture as SVG; stored as PNG too."""
    figure = draw_diagnosis(diagnosis["figures"], diagnosis["name"])
    _save_picture(figure, output_dir, f"diagnosis {number}")
    return as_svg(figure)


# -- the card ---------------------------------------------------------------------------------------------------------


def card_figures(history: History, step: int | None = None) -> dict[str, str]:
    """The last figures that a card shows, in the order of the table: key -> text.

    Args:
        step: of the model that is kept.
    """
    found = last_figures(history, step)
    return {key: found[key].text for _, key, _ in logged_values(found, CARD)}


def render_model_card(output_dir: str | Path, record: RunRecord, history: History) -> str:
    """The model card: data, rewards, held-out results, figures, command, recipe and versions."""
    info = record.info
    folder = Path(output_dir) / FIGURES_FOLDER
    pictures = [_picture(panel.title) for panel in PANELS if panel.card]
    return (
        _environment(autoescape=False)
        .get_template("model_card.md.jinja")
        .render(
            record=record,
            info=info,
            base_model_id=None if os.path.isdir(info.base_model) or " " in info.base_model else info.base_model,
            diagnoses=[diagnosis_table(one) for one in record.diagnoses],
            final=card_figures(history, None if record.kept is None else record.kept.step),
            figures=[name for name in pictures if (folder / name).is_file()],
        )
    )


def write_card(output_dir: str | Path, record: RunRecord, history: History) -> None:
    """Writes `README.md`."""
    with atomic_write(Path(output_dir) / CARD_FILE) as file:
        file.write(render_model_card(output_dir, record, history))


# -- of a finished run ------------------------------------------------------------------------------------------------


def read_history(output_dir: Path) -> list[dict]:
    """What a finished run logged.

    Raises:
        RecordError: no finished run in this folder.
    """
    path = output_dir / STATE_FILE
    try:
        return json.loads(path.read_bytes())["log_history"]
    except OSError as error:
        problem = f"{path}: cannot be read: {error.strerror}; expected the folder of a run that has finished"
        raise RecordError([problem]) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError([f"{path}: expected what a run of this toolkit logged: {error}"]) from error


def add_held_out(output_dir: Path, files: Sequence[Path]) -> Path:
    """Puts results into report and card of a finished run; those of a file that is there already are replaced.

    Raises:
        RecordError: no finished run, or a file of another kind.
    """
    record, history = load_record(output_dir), read_history(output_dir)
    if record is None:
        raise RecordError([f"{output_dir / RECORD_FILE}: missing or damaged; expected the folder of a finished run"])
    tables = [read_held_out(file) for file in files]
    diagnoses = [found for found in map(read_diagnosis, files) if found is not None]
    new = {table["source"] for table in tables}
    record.held_out = [table for table in record.held_out if table["source"] not in new] + tables
    record.diagnoses = [one for one in record.diagnoses if one["source"] not in new] + diagnoses
    record.save(output_dir)
    path = write_report(output_dir, record, history)
    write_card(output_dir, record, history)
    return path
