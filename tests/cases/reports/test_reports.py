"""Reports that can be trusted: odd values and texts end no run and lose no sample; figures are the kept model's."""

import json
import math
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trainers.report.__main__ import main
from trainers.report.curves import draw_figures
from trainers.report.logged_figures import last_figures
from trainers.report.page import card_figures, render_model_card, write_report
from trainers.report.publishing import ReportCallback
from trainers.report.record import KeptModel, RunInfo, RunRecord, Session, kept_model, load_record
from trainers.report.samples import SampleGroup, SampleLog
from trainers.run.console import format_log

INFO = RunInfo("GRPO", "accelerate launch trainers/grpo.py --config r.yaml", "beta: 0.05", "my_data", "tiny")
SESSION = Session("2026-01-02T03:04:05+00:00", 0, 8, 65.0, "CPU: one, 2 cores", INFO.command, 1_000, {"memory": 1.5})


def _group(*completions: str, prompt: str = "Which?", **changes) -> SampleGroup:
    texts = completions or ("one", "two")
    return SampleGroup(
        prompt=[{"role": "user", "content": prompt}],
        images=[Image.new("RGB", (8, 8), "teal")],
        completions=texts,
        **{"scores": [{"reward": 1.0} for _ in texts], "advantages": [0.5 for _ in texts], **changes},
    )


def _page(folder, history=(), **record) -> str:
    path = write_report(folder, RunRecord(INFO, sessions=[SESSION], **record), list(history))
    return path.read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Tags with their attributes, and the texts between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


# -- T3: logged values that are no numbers ----------------------------------------------------------------------------

ODD_VALUES = [None, math.nan, math.inf, "cosine", True, np.float32("nan"), 10**400 / 10**399, [1.0, 2.0]]


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
@pytest.mark.parametrize(
    "key", ["rewards/picky/mean", "eval_rewards/picky/mean", "reward", "kl", "eval_loss", "grad_norm", "reward_std"]
)
def test_t03_a_value_that_is_no_number_ends_neither_console_line_nor_card_nor_report(key, value, tmp_path):
    history = [{"step": 1, "loss": 0.5, "reward": 0.1, "reward_std": 0.2, key: value}, {"step": 2, key: value}]
    assert format_log(1, 2, history[0]).startswith("step 1/2")
    figures = last_figures(history)
    assert figures[key].step == 2
    record = RunRecord(INFO, sessions=[SESSION])
    assert figures[key].text in write_report(tmp_path, record, history).read_text(encoding="utf-8")
    assert "0.5" in render_model_card(tmp_path, record, history)


def test_t03_the_console_line_says_none():
    logs = {"reward": None, "rewards/picky/mean": None, "kl": math.nan, "loss": 0.25}
    assert format_log(3, 9, logs) == "step 3/9  reward none  picky none  KL nan  loss 0.25"


def test_t03_card_and_report_show_that_the_last_value_is_none_not_an_older_one():
    history = [{"step": 1, "rewards/picky/mean": 0.75}, {"step": 2, "rewards/picky/mean": None}]
    assert card_figures(history) == {"rewards/picky/mean": "none"}
    assert last_figures(history)["rewards/picky/mean"].text == "none"


def test_t03_curves_have_gaps_where_there_was_no_number():
    history = [{"step": step, "rewards/picky/mean": value} for step, value in enumerate([0.5, None, math.inf, 0.25])]
    [figure] = draw_figures(history).values()
    values = figure.axes[0].lines[0].get_ydata().tolist()
    assert [value if value == value else "gap" for value in values] == [0.5, "gap", "gap", 0.25]
    assert draw_figures([{"step": 1, "reward": None}]) == {}


def test_t03_numbers_of_numpy_are_numbers():
    history = [{"step": 1, "loss": np.float32(0.5)}, {"step": 2, "loss": np.array(0.25)}]
    assert format_log(1, 2, history[0]) == "step 1/2  loss 0.5"
    assert draw_figures(history)["loss"].axes[0].lines[0].get_ydata().tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": [{"reward": None}, {"other": math.nan}], "advantages": [None, math.inf]},
        {"scores": [], "advantages": []},
        {"scores": [{"reward": np.float32(0.5)}] * 2, "advantages": [np.float64(1.0), 0.0]},
    ],
)
def test_t03_samples_with_odd_scores_are_shown(changes, tmp_path):
    SampleLog(tmp_path).add(1, _group("first answer", "second answer", **changes))
    page = _page(tmp_path)
    assert "first answer" in page
    assert "second answer" in page


# -- T13: texts that split lines, and files cut anywhere --------------------------------------------------------------

SEPARATORS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\n", "\r\n", "\ud83d", "\0"]


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_t13_a_text_with_any_separator_loses_no_sample(separator, tmp_path):
    text = f"before{separator}after"
    log = SampleLog(tmp_path)
    log.add(0, _group(text, prompt=text, answers={"gold": text}))
    log.add(1, _group("next"))
    first, second = log.read()
    expected = text.replace("\ud83d", "\ufffd")
    assert (first.completions, first.prompt[0].text, first.answers["gold"]) == ([expected], expected, expected)
    assert second.completions == ["next"]
    assert log.unreadable == 0
    assert len(log.path.read_text(encoding="utf-8").splitlines()) == 2  # for readers of other tools
    page = _page(tmp_path)
    assert page.count("after") >= 3
    assert "next" in page


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 3, "prom', '{"step": 3, "prompt": "caf\u00e9'.encode()[:-1], b"\xff\xfe\x00", b"{", b"\xe2\x80"],
    ids=ascii,
)
def test_t13_a_torn_last_line_costs_neither_the_report_nor_the_next_sample(torn, tmp_path):
    SampleLog(tmp_path).add(1, _group("kept"))
    with (tmp_path / "samples.jsonl").open("ab") as file:
        file.write(torn)
    assert "kept" in _page(tmp_path)
    log = SampleLog(tmp_path)  # of the run that goes on
    log.add(2, _group("after the kill"))
    assert [sample.completions for sample in log.read()] == [["kept"], ["after the kill"]]
    assert log.unreadable == 0


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[]", b"5", b'{"step": "?"}', b'{"step": 2}', b"\xe2\x80\xa8"], ids=ascii
)
def test_t13_a_damaged_line_in_the_middle_is_counted_and_shown(line, tmp_path):
    log = SampleLog(tmp_path)
    log.add(1, _group("kept"))
    log.path.write_bytes(line + b"\n" + log.path.read_bytes())
    page = _page(tmp_path)
    assert "kept" in page
    assert "1 lines of samples.jsonl cannot be read" in page


def test_a_resumed_run_makes_its_samples_again_and_a_new_one_starts_clean(tmp_path):
    log = SampleLog(tmp_path)
    for step in (0, 5, 10):
        log.add(step, _group(f"first {step}"))
    resumed = SampleLog(tmp_path)
    resumed.begin(5)
    resumed.add(5, _group("second 5"))
    assert [sample.completions[0] for sample in resumed.read()] == ["first 0", "second 5"]
    resumed.begin(0)
    assert resumed.read() == []


# -- T18: the model that is kept --------------------------------------------------------------------------------------

HISTORY = [
    {"step": 2, "loss": 0.9, "rewards/r/mean": 0.2},
    {"step": 2, "eval_accuracy": 0.5, "eval_runtime": 1.0},
    {"step": 4, "loss": 0.5, "rewards/r/mean": 0.6},
    {"step": 4, "eval_accuracy": 0.75, "eval_runtime": 1.0},
    {"step": 8, "loss": 0.1, "rewards/r/mean": 0.1},
    {"step": 8, "eval_accuracy": 0.25, "eval_runtime": 1.0},
    {"step": 8, "train_runtime": 9.0, "train_loss": 0.4},
]


def _kept(folder: str | None = "/run/checkpoint-4", loads=True, metric="accuracy") -> KeptModel | None:
    args = SimpleNamespace(load_best_model_at_end=loads, metric_for_best_model=metric)
    return kept_model(args, SimpleNamespace(best_model_checkpoint=folder, global_step=8))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, KeptModel(4, "eval_accuracy", 8)),
        ({"metric": "eval_loss"}, KeptModel(4, "eval_loss", 8)),
        ({"metric": None}, KeptModel(4, "eval_loss", 8)),
        ({"folder": "out-2/checkpoint-16"}, KeptModel(16, "eval_accuracy", 8)),
        ({"loads": False}, None),
        ({"folder": None}, None),
    ],
)
def test_t18_which_model_is_kept(settings, expected):
    assert _kept(**settings) == expected


def test_t18_card_and_report_have_the_figures_of_the_kept_step_and_name_it(tmp_path):
    record = RunRecord(INFO, sessions=[SESSION], kept=_kept(), name="mine")
    card = render_model_card(tmp_path, record, HISTORY)
    assert "| eval_accuracy | 0.75 |" in card
    assert "| loss | 0.5 |" in card
    assert "- **Steps:** 4, the best by `eval_accuracy` of 8" in card
    assert "Of the model that is kept, that of step 4:" in card
    page = write_report(tmp_path, record, HISTORY).read_text(encoding="utf-8")
    texts = [text.strip() for text in Parsed(page).texts]
    place = texts.index("eval_accuracy")
    assert [text for text in texts[place + 1 : place + 6] if text][:2] == ["0.75", "4"]
    assert "that of step 4, the best by eval_accuracy" in page


def test_t18_without_a_best_model_the_last_figures_are_the_last():
    assert card_figures(HISTORY) == {"rewards/r/mean": "0.1", "eval_accuracy": "0.25", "loss": "0.1"}
    assert card_figures(HISTORY, 4) == {"rewards/r/mean": "0.6", "eval_accuracy": "0.75", "loss": "0.5"}


def test_t18_the_kept_step_is_marked_in_the_curves():
    axes = draw_figures(HISTORY, kept_step=4)["accuracy"].axes[0]
    assert [line.get_xdata() for line in axes.lines if line.get_label() == "model kept"] == [[4, 4]]


# -- what the report says, and what it must survive -------------------------------------------------------------------

HOSTILE = '$"><script>alert(1)</script><img src=x onerror=alert(1)>\u202e{{ 7*7 }}`</pre>| a'


def test_hostile_texts_are_shown_as_texts_everywhere(tmp_path):
    info = RunInfo(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, [HOSTILE], {HOSTILE: HOSTILE}, "vlm", {HOSTILE: 1})
    table = {"source": HOSTILE, "title": HOSTILE, "columns": [HOSTILE], "rows": [[HOSTILE]]}
    group = _group(
        HOSTILE,
        prompt=HOSTILE,
        scores=[{HOSTILE: 1.0}],
        advantages=[0.5],
        advantage_name=HOSTILE,
        answers={HOSTILE: HOSTILE},
        marks=[HOSTILE],
        verdict=(True, HOSTILE),
    )
    log = SampleLog(tmp_path)
    log.add(0, group)
    log.add(0, group, "held out")
    history = [{"step": 1, f"rewards/{HOSTILE}/mean": 0.5, HOSTILE: HOSTILE}]
    session = Session(HOSTILE, 0, 1, 1.0, HOSTILE, HOSTILE)
    record = RunRecord(info, [session], KeptModel(1, HOSTILE, 1), [table], {HOSTILE: HOSTILE}, HOSTILE, HOSTILE)
    page = write_report(tmp_path, record, history).read_text(encoding="utf-8")
    tags = Parsed(page).tags
    assert [tag for tag, _ in tags if tag == "script"] == []
    assert all(attributes.get("src", "").startswith("data:image/png") for tag, attributes in tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "\\u202e{{ 7*7 }}`</pre>| a" in "".join(Parsed(page).texts)


def test_pictures_and_curves_have_words(tmp_path):
    SampleLog(tmp_path).add(0, _group())
    page = _page(
        tmp_path, [{"step": 1, "reward": 0.25, "reward_std": 0.1}, {"step": 2, "reward": 0.5, "reward_std": 0.1}]
    )
    tags = Parsed(page).tags
    assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
    [figure] = [attributes for tag, attributes in tags if tag == "figure"]
    assert figure["aria-label"] == "reward: reward 0.25 at step 1, 0.5 at step 2"
    assert "Band: one standard deviation" in page


def test_a_report_that_fails_is_said_once_and_ends_no_run(tmp_path, capsys):
    trainer = SimpleNamespace(run_info=INFO, run_record=RunRecord(INFO), _finish_current_push=lambda: None)
    callback = ReportCallback(trainer)
    (tmp_path / "report.html").mkdir()  # in the way
    args = SimpleNamespace(output_dir=str(tmp_path), load_best_model_at_end=False)
    state = SimpleNamespace(is_world_process_zero=True, log_history=[], global_step=1, best_model_checkpoint=None)
    for _ in range(2):
        callback.on_train_end(args, state, None)
    printed = capsys.readouterr().err
    assert printed.count("warning: the report could not be written") == 1
    assert "report.html" in printed


def test_the_course_of_a_resumed_run(tmp_path):
    sessions = [
        SESSION,
        Session("2026-01-03T00:00:00+00:00", 8, 20, 30.0, "CPU: one, 2 cores", "c", 900, {"memory": 2}),
    ]
    record = RunRecord(RunInfo(*["x"] * 5, rows={"training": 1234}), sessions)
    record.save(tmp_path)
    assert load_record(tmp_path) == record
    assert record.facts == {
        "rows, training": "1,234",
        "started": "2026-01-02 03:04:05 UTC",
        "duration": "1 min 35 s",
        "optimizer steps": "20",
        "resumed": "from step 8",
        "tokens": "1,900, 20 a second",
        "hardware": "CPU: one, 2 cores",
        "peak memory": "2.00 GB, main process",
    }


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"info": 5}'], ids=ascii)
def test_a_damaged_record_is_begun_anew(content, tmp_path):
    (tmp_path / "report.json").write_bytes(content)
    assert load_record(tmp_path) is None


COMPARISON = {"vqa": {"before": 0.25, "after": 0.5, "estimate": 0.25, "low": 0.125, "high": 0.375, "rows": 1600}}


def test_held_out_results_go_into_report_and_card(tmp_path, capsys):
    RunRecord(INFO, sessions=[SESSION], name="mine", loads_from="mine").save(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON))
    for _ in range(2):  # the second replaces what the first put there
        main(["--output_dir", str(tmp_path), "--held_out", str(tmp_path / "comparison.json")])
    for name in ("report.html", "README.md"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text.count("+0.250 [+0.125, +0.375]") == 1
        assert "1,600" in text
    assert "| vqa | 0.250 | 0.500 | +0.250 [+0.125, +0.375] | 1,600 |" in text
    assert capsys.readouterr().out == f"written: {tmp_path / 'report.html'}\n" * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "not valid JSON"),
        ('{"a": 1}', "expected comparison.json of rewards.eval --compare"),
        ("[]", "expected comparison.json of rewards.eval --compare"),
    ],
)
def test_a_file_without_held_out_results_is_named(content, message, tmp_path):
    RunRecord(INFO).save(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    if content is not None:
        (tmp_path / "other.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        main(["--output_dir", str(tmp_path), "--held_out", str(tmp_path / "other.json")])


def test_no_results_without_a_finished_run(tmp_path):
    with pytest.raises(SystemExit, match=r"trainer_state\.json: cannot be read"):
        main(["--output_dir", str(tmp_path), "--held_out", "x.json"])
