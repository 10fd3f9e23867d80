"""The report of a run: one self-contained page with curves, samples, recipe and versions; and the console's lines."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from trainers.report.curves import draw_figures
from trainers.report.page import visible, write_report
from trainers.report.record import RunInfo, RunRecord
from trainers.report.samples import SampleGroup, SampleLog
from trainers.run.console import format_log

HISTORY = [
    {"step": step, "reward": 0.1 * step, "reward_std": 0.05, "rewards/agent_selection/mean": 0.2, "kl": 0.01,
     "loss": -0.1, "learning_rate": 1e-4, "completions/mean_length": 30.0}
    for step in range(1, 6)
]  # fmt: skip
INFO = RunInfo("GRPO", "accelerate launch trainers/grpo.py --config r.yaml", "beta: 0.05 # <b>", "my_data", "tiny")
GROUP = SampleGroup(
    prompt=[{"role": "system", "content": "Choose."}, {"role": "user", "content": "<script>alert(1)</script>"}],
    images=[Image.new("RGB", (640, 480), "teal")],
    completions=["<selection>good</selection>", "bad & broken"],
    scores=[{"agent_selection": 1.0}, {"agent_selection": None}],
    advantages=[0.7, -0.7],
)


class Links(HTMLParser):
    """Everything that a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.loaded, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            if key in ("src", "href", "xlink:href") and not value.startswith(("data:", "#")):
                self.loaded.append((tag, value))


@pytest.fixture(autouse=True, scope="module")
def one_picture() -> None:
    """All are drawn."""


@pytest.fixture
def page(tmp_path):
    log = SampleLog(tmp_path)
    log.add(1, GROUP)
    write_report(tmp_path, RunRecord(INFO), HISTORY)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_needs_no_other_file(page):
    links = Links()
    links.feed(page)
    assert links.loaded == []
    assert "script" not in links.tags
    assert "url(http" not in page


def test_page_shows_every_curve_that_was_logged(page):
    titles = ["reward", "reward parts", "KL to the reference", "completion length", "loss", "learning rate"]
    assert len(re.findall(r"<svg", page)) == len(titles)
    assert list(draw_figures(HISTORY)) == titles


def test_page_shows_prompt_image_completions_and_rewards(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "bad &amp; broken" in page
    assert "data:image/png;base64," in page
    assert "my_data" in page
    assert "beta: 0.05 # &lt;b&gt;" in page
    assert "transformers" in page


def test_curves_hold_the_logged_values():
    axes = draw_figures(HISTORY)["reward"].axes[0]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_samples_survive_a_line_cut_short_and_repeated_steps(tmp_path):
    log = SampleLog(tmp_path)
    log.add(1, GROUP)
    log.add(2, GROUP)
    log.add(2, SampleGroup(GROUP.prompt, [], ["after resuming"], [{}], [0.0]))
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "prom')
    rows = log.read()
    assert [row.step for row in rows] == [1, 2]
    assert rows[1].completions == ["after resuming"]


def test_thumbnails_are_small(tmp_path):
    SampleLog(tmp_path).add(1, GROUP)
    row = json.loads((tmp_path / "samples.jsonl").read_text(encoding="utf-8"))
    assert len(row["images"][0]["address"]) < 20_000


def test_samples_are_wanted_about_twenty_times_a_run(tmp_path):
    log = SampleLog(tmp_path)
    assert sum(log.wants(step, 400) for step in range(400)) == 20
    assert sum(log.wants(step, 5) for step in range(5)) == 5


def test_a_picture_that_cannot_be_shown_costs_its_sample_nothing_else(tmp_path):
    log = SampleLog(tmp_path)
    log.add(1, SampleGroup(GROUP.prompt, ["no such image.png"], ["text"], [{}], [0.0]))
    [sample] = log.read()
    assert sample.images[0].address is None
    assert "no such image.png" in sample.images[0].problem
    page = write_report(tmp_path, RunRecord(INFO), HISTORY).read_text(encoding="utf-8")
    assert "cannot be shown" in page


def test_a_sample_that_cannot_be_kept_is_said_once(tmp_path, capsys):
    (tmp_path / "run").write_text("a file where the folder should be")
    log = SampleLog(tmp_path / "run")
    for step in (1, 2):
        log.add(step, GROUP)
    assert capsys.readouterr().err.count("a sample of step 1 is missing in the report") == 1


def test_console_line():
    line = format_log(5, 65, {**HISTORY[4], "epoch": 0.1, "rewards/agent_selection/std": 0.3})
    assert line == ("step 5/65  reward 0.5  agent_selection 0.2  KL 0.01  length 30  loss -0.1  lr 0.0001")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n\n\n\nb", "a\n\n\n\nb"),
        ("a\n\n\n\n\nb", "a\n[4 empty lines]\nb"),
        ("\n" * 400, "\n[399 empty lines]\n"),
        ("a\n \n\t\n \n \nb\x1c", "a\n[4 empty lines]\nb\\x1c"),
    ],
)
def test_many_empty_lines_are_counted_instead_of_shown(text, shown):
    assert visible(text) == shown
