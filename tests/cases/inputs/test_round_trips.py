"""What one part of the toolkit writes, another reads back unchanged: answers, agents' prompts, tables, records."""

import math

import pytest
from datasets import disable_progress_bars
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.agent_selection import AgentSelectionRecord, load_records, write_splits
from data.io.records import RecordError, write_jsonl
from data.prompts import escape_text, format_selection, read_text
from data.quality_reports import agent_prompt
from data.reports.aspects import ASPECTS, EXACT_COPIES, NEAR_COPIES, healthy_bounds
from data.reports.measurements import HEALTHY
from data.reports.pool import Item, Pool
from data.tasks import load_rows, selection_row, vqa_row
from data.vqa import VqaRecord
from filter_agents.base import FilterAgent, Instruction
from filter_agents.registry import build_agents
from rewards.agent_selection import AgentSelection, parse_selection
from rewards.filtering_quality import Combined, FilteringQuality
from rewards.formats.xml_format import StrictXmlFormat, XmlFormat, read_strict_selection
from rewards.vqa_accuracy import VqaAccuracy, read_answer
from rollouts.factor_routing import Suggestion, load_routes, write_routes

XML_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
        lambda sign: sign in "\t\n\r" or ord(sign) >= 32
    ),
    max_size=40,
)
PIECES = st.lists(
    st.sampled_from(["&", "<", ">", '"', "'", "]]>", "<![CDATA[", "&amp;", "&lt", "&#38;", "&#x26;", "</prompt>"])
    | st.sampled_from(["</agent>", "<name>", "</agents>", "\r\n", "\r", "\n", "\t", " ", "\xa0", "\x85", "\u2028"])
    | st.sampled_from(["salt", "盐", "🙂", "<!-- x -->", "<?x?>", "&nbsp;", "&#0;", "&#99999999;"]),
    max_size=8,
).map("".join)
TEXT = XML_TEXT | PIECES


@settings(max_examples=300)
@given(TEXT)
def test_f13_any_text_is_read_as_it_was_written(text):
    assert read_text(escape_text(text)) == text
    assert read_text(f" \n{escape_text(text)}\t") == text  # white space around an element's text is passed over


@settings(max_examples=300)
@given(st.dictionaries(TEXT, TEXT, max_size=3), TEXT)
def test_f13_both_readers_find_the_written_agents_and_prompts(prompts, reasoning):
    answer = format_selection(prompts, reasoning)
    assert parse_selection(answer).unescaped().prompts == prompts
    assert parse_selection(answer).unescaped().agents == list(prompts)
    assert read_strict_selection(answer) == list(prompts.items())
    assert XmlFormat()([answer]) == [1.0]


@settings(max_examples=200)
@given(PIECES)
def test_f13_what_is_strict_reads_the_same_to_both_readers(content):
    answer = (
        f"<selection><reasoning/><agents><agent><name>a</name><prompt>{content}</prompt></agent></agents></selection>"
    )
    found = read_strict_selection(answer)
    if found is not None:
        selection = parse_selection(answer).unescaped()
        assert [(name, selection.prompts[name]) for name in selection.agents] == found


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("salt & pepper", "salt & pepper"),  # unescaped, as a model may write it
        ("salt &amp; pepper", "salt & pepper"),
        ("a &amp;lt; b", "a &lt; b"),  # once, not twice
        ("blur &lt;= 0.5", "blur <= 0.5"),
        ("&#115;alt &#x26; &quot;pepper&apos;", "salt & \"pepper'"),
        ("fish &nbsp; chips &copy", "fish &nbsp; chips &copy"),  # of HTML, not of XML
        ("&#0;&#xD800;&#1114112;", "&#0;&#xD800;&#1114112;"),  # no characters
    ],
)
def test_f13_references_are_read_once_and_others_left_alone(written, read):
    assert read_text(written) == read


class TextFilter(FilterAgent):
    """Keeps items whose question contains the prompt, letter by letter."""

    name = "R&D <text> filter"
    description = "keeps questions that contain a text"

    def read_prompt(self, prompt):
        return Instruction((prompt,), True)

    def keep(self, pool_folder, parameters):
        return [item.id for item in Pool(pool_folder).items if parameters[0] in item.question]


@pytest.mark.parametrize(
    "prompt", ["salt & pepper", "a < b", "x > y", '"quoted"', "]]>", "&amp;", " two  spaces ", "line\nbreak", "a\r\nb"]
)
def test_f13_the_right_answer_of_an_own_agent_earns_the_maximum(prompt, tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.TextFilter", TextFilter, raising=False)
    picture = tmp_path / "0.png"
    Image.new("RGB", (16, 16)).save(picture)
    items = [Item(id=0, image="0.png", question=f"is it {prompt}?"), Item(id=1, image="0.png", question="sugar?")]
    Pool(tmp_path, items).save_items()
    record = AgentSelectionRecord(
        report="r",
        ground_truth_agents=[TextFilter.name],
        ground_truth_prompts={TextFilter.name: prompt},
        ground_truth_filtered_data=[0],
        pool=str(tmp_path),
    )
    row = selection_row(record, [])
    columns = {name: [row[name]] for name in ("ground_truth_agents", "ground_truth_filtered_data", "pool")}
    agents = [f"{__name__}.TextFilter"]
    for reward in (AgentSelection(), FilteringQuality(agents), Combined(agents=agents), StrictXmlFormat(agents)):
        assert reward([row["gold"]], **{name: columns.get(name) for name in reward.columns}) == [1.0], reward.name


@pytest.mark.parametrize(
    ("prompts", "character"),
    [({"a": "bell \x07"}, "\\x07"), ({"a": "\x1b[1m"}, "\\x1b"), ({"a\ufffe": "b"}, "\\ufffe")],
)
def test_f13_what_no_answer_can_hold_is_an_error_at_reading(prompts, character, tmp_path):
    row = {"report": "r", "ground_truth_agents": list(prompts), "ground_truth_filtered_data": []}
    write_jsonl(tmp_path / "train.jsonl", [{**row, "ground_truth_prompts": prompts}])
    with pytest.raises(RecordError) as error:
        load_rows(tmp_path, "train")
    assert "train.jsonl:1: field 'ground_truth_" in str(error.value)
    assert f"cannot hold the character '{character}'" in str(error.value)
    with pytest.raises(ValueError, match="cannot be written in a selection"):
        format_selection(prompts, "")


@pytest.mark.parametrize("prompts", [None, {}, {"blur_filter": ""}])
def test_f13_an_agent_without_a_prompt_is_told_to_use_its_default(prompts):
    record = AgentSelectionRecord(
        report="r",
        ground_truth_agents=["blur_filter"],
        ground_truth_filtered_data=[],
        ground_truth_prompts=prompts,
    )
    gold = selection_row(record, [])["gold"]
    assert read_strict_selection(gold) == [("blur_filter", "use the default")]
    assert StrictXmlFormat()([gold]) == [1.0]


@pytest.mark.parametrize("aspect", ASPECTS, ids=lambda aspect: aspect.agent)
@given(side=st.floats(1, 16_384))
def test_f13_the_prompts_of_written_reports_mean_their_bounds_to_the_agents(aspect, side):
    agent = build_agents([aspect.agent])[aspect.agent]
    instruction = agent.read_prompt(agent_prompt(aspect, side))
    assert instruction.understood
    if aspect == NEAR_COPIES:
        assert instruction.parameters == (HEALTHY["distance"].maximum,)
    elif aspect != EXACT_COPIES:
        bounds = healthy_bounds(aspect, math.ceil(side))
        assert dict(instruction.parameters) == {name: bounds[name] for name in bounds if name != "answer_words"}


FACTOR = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1)


@settings(max_examples=100)
@given(
    st.dictionaries(
        FACTOR | st.sampled_from(["null", "yes", "1", "a: b", "# x", "- x", "a" * 300]), st.booleans(), min_size=1
    )
)
def test_f13_a_routing_table_is_read_as_it_was_written(tmp_path_factory, chosen):
    agents = build_agents(["blur_filter"])
    path = tmp_path_factory.mktemp("routes") / "routing.yaml"
    routes = {factor: "blur_filter" if has_agent else None for factor, has_agent in chosen.items()}
    write_routes(path, {factor: Suggestion(agent, 0.5) for factor, agent in routes.items()})
    assert load_routes(path, list(routes), agents) == routes


NEAR_TAGS = st.lists(st.sampled_from(["<", "/", "answer", "ANSWER", ">", "<answer>", "</answer>", "ſ", " ", "red"]))


@settings(max_examples=200)
@given(st.text() | NEAR_TAGS.map("".join))
def test_f13_a_right_answer_between_tags_is_read_as_it_was_written_or_refused(text):
    record = VqaRecord(question="what?", answers=text, images=["a.png"], id=7)
    assert vqa_row(record)["gold"] == text
    if "<answer>" in text.lower() or "</answer>" in text.lower():
        with pytest.raises(
            RecordError, match="record 7: field 'answers': item 0: expected an answer without <answer>"
        ):
            vqa_row(record, answer_tags=True)
        return
    row = vqa_row(record, answer_tags=True)
    assert "<answer>" in row["prompt"][0]["content"]
    assert read_answer(row["gold"]) == text
    assert VqaAccuracy()([row["gold"]], answers=[row["answers"]]) == [1.0]


def test_f13_rows_whose_answers_hold_tags_are_all_named(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    given = ["red", ["red", "the <answer> tag"], "</ANSWER>"]
    write_jsonl(tmp_path / "my.jsonl", [{"image": "a.png", "question": "what?", "answers": one} for one in given])
    assert len(load_rows(tmp_path / "my.jsonl", "train")) == 3
    with pytest.raises(RecordError) as error:
        load_rows(tmp_path / "my.jsonl", "train", answer_tags=True)
    expected = "expected an answer without <answer> tags, found"
    assert error.value.problems == [
        f"{tmp_path}/my.jsonl:2: field 'answers': item 1: {expected} 'the <answer> tag'",
        f"{tmp_path}/my.jsonl:3: field 'answers': item 0: {expected} '</ANSWER>'",
    ]


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.lists(
    st.builds(
        AgentSelectionRecord,
        report=XML_TEXT.filter(bool),
        ground_truth_agents=st.lists(XML_TEXT.filter(str.strip), max_size=2),
        ground_truth_filtered_data=st.lists(st.integers(0, 9) | XML_TEXT, max_size=3),
        ground_truth_prompts=st.none() | st.dictionaries(XML_TEXT, TEXT, max_size=2),
        metadata=st.none() | st.dictionaries(st.text("ab\u2028", max_size=3), st.none() | NUMBERS, max_size=2),
        id=st.none() | st.integers(0, 9) | XML_TEXT,
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("file_format", ["hf", "json", "jsonl"])
@settings(max_examples=15)
@given(RECORDS)
@example([AgentSelectionRecord(report="r", ground_truth_agents=[], ground_truth_filtered_data=["1", 1, "true"],
                               metadata={"a": -(10**24), "b": 1 / 3}, id="0")])  # fmt: skip
def test_f13_records_are_read_as_they_were_written(tmp_path_factory, file_format, records):
    disable_progress_bars()
    folder = tmp_path_factory.mktemp("records")
    write_splits({"train": records}, folder, file_format)
    assert load_records(folder, "train") == records
