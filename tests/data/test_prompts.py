"""What a model is asked, and the text of a right answer."""

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from data.prompts import SELECTION_FORMAT, format_selection, selection_messages, vqa_messages

TEXT = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc", "Cn"]), min_size=1).map(str.strip)


def test_the_system_text_lists_the_agents_and_the_format():
    system, user = selection_messages("A report.", [("zoom", "enlarges"), ("crop", "cuts")])
    assert (system["role"], user["role"]) == ("system", "user")
    lines = system["content"].splitlines()
    assert lines[1:4] == ["Agents:", "- zoom: enlarges", "- crop: cuts"]
    assert lines[-1] == SELECTION_FORMAT
    assert user["content"] == "A report."


def test_the_format_that_is_shown_is_one_that_can_be_read():
    root = ElementTree.fromstring(SELECTION_FORMAT)
    assert [child.tag for child in root] == ["reasoning", "agents"]
    assert [child.tag for child in root.find("agents/agent")] == ["name", "prompt"]


def test_a_right_answer_is_written_as_the_format_has_it():
    assert format_selection({"zoom": "2 times", "crop": "a < b"}, "Too small & wide.") == (
        "<selection><reasoning>Too small &amp; wide.</reasoning><agents>"
        "<agent><name>zoom</name><prompt>2 times</prompt></agent>"
        "<agent><name>crop</name><prompt>a &lt; b</prompt></agent></agents></selection>"
    )


@given(prompts=st.dictionaries(TEXT, TEXT), reasoning=TEXT)
def test_any_answer_can_be_read_back(prompts, reasoning):
    root = ElementTree.fromstring(format_selection(prompts, reasoning))
    agents = root.findall("agents/agent")
    assert {agent.findtext("name"): agent.findtext("prompt") for agent in agents} == prompts
    assert root.findtext("reasoning") == reasoning


def test_questions_are_asked_plainly_or_with_answer_tags():
    plain, tagged = vqa_messages("Why?"), vqa_messages("Why?", answer_tags=True)
    assert plain[1] == tagged[1] == {"role": "user", "content": "Why?"}
    assert "<answer>" not in plain[0]["content"]
    assert "<answer>...</answer>" in tagged[0]["content"]
