"""What a model is asked, and the text of a right answer."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.prompts import (
    SELECTION_FORMAT,
    format_selection,
    in_context_messages,
    selection_messages,
    vqa_messages,
)

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


def test_examples_are_turns_of_a_chat():
    messages = in_context_messages(
        "what is it?", [("what color?", "red"), ("is it red?", "no")], image_counts=[1, 2, 1]
    )
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    image = {"type": "image"}
    assert messages[3]["content"] == [image, image, {"type": "text", "text": "is it red?"}]
    assert messages[4]["content"] == [{"type": "text", "text": "no"}]
    assert messages[5]["content"] == [image, {"type": "text", "text": "what is it?"}]


def test_examples_stand_in_a_single_turn():
    messages = in_context_messages("what is it?", [("what color?", "red")], "single_turn", None)
    assert [message["role"] for message in messages] == ["user"]
    assert [part.get("text") for part in messages[0]["content"]] == [
        None,
        "Question:what color? Short answer:red",
        None,
        "Question:what is it? Short answer:",
    ]


def test_unknown_styles_and_wrong_numbers_of_images_are_refused():
    with pytest.raises(ValueError, match="prompt style: expected one of chat, single_turn, found 'poem'"):
        in_context_messages("what?", style="poem")
    with pytest.raises(ValueError, match=r"image counts: expected 2, of each example and the question, found \[1\]"):
        in_context_messages("what?", [("is it?", "no")], image_counts=[1])
