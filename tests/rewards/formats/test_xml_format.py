"""The two formats: the original's lenient rule, and to the letter."""

import re
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.prompts import format_selection
from filter_agents.registry import AGENTS, DEFAULT_AGENTS, AgentError
from rewards.agent_selection import AgentSelection, parse_selection
from rewards.formats import xml_format
from rewards.formats.xml_format import StrictXmlFormat, XmlFormat, read_strict_selection

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
BLUR = "<agent><name>blur_filter</name><prompt>keep blur at most 0.5</prompt></agent>"
EXPOSURE = "<agent><name>exposure_filter</name><prompt>keep brightness at least 0.2</prompt></agent>"
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
BILLION_LAUGHS = f'<!DOCTYPE selection [<!ENTITY l0 "ha">{LAUGHS}]>'


def selection(agents: str = BLUR, reasoning: str = "<reasoning>too soft</reasoning>") -> str:
    return f"<selection>{reasoning}<agents>{agents}</agents></selection>"


def agent(name: str = "blur_filter", prompt: str = "keep blur at most 0.5") -> str:
    return f"<agent><name>{name}</name><prompt>{prompt}</prompt></agent>"


STRICT = {  # name: completion
    "one agent": selection(),
    "two agents": selection(BLUR + EXPOSURE),
    "no agents": selection(""),
    "white space around elements": f"\n  {selection(f' {BLUR} ')}\n".replace("><", ">\n\t<"),
    "white space inside texts": selection(agent(" blur_filter\n", "\tkeep it ")),
    "empty reasoning": selection(reasoning="<reasoning></reasoning>"),
    "escaped signs": selection(agent(prompt="blur &lt; 0.5 &amp; not &gt; &quot;1&quot;")),
    "character references": selection(agent("blur&#95;filter", "&#x6b;eep")),
    "other scripts": selection(agent(prompt="keep ≤ 0.5 清晰 🙂"), "<reasoning>Unschärfe</reasoning>"),
    "every agent": selection("".join(agent(name) for name in AGENTS)),
}
LENIENT_ONLY = {
    "text before": "Sure! " + selection(),
    "text after": selection() + " Hope this helps.",
    "two selections": selection() * 2,
    "text between elements": f"<selection>x<reasoning>r</reasoning><agents>{BLUR}</agents></selection>",
    "text between agents": selection(f"{BLUR}, {EXPOSURE}"),
    "text in an agent": selection("<agent>x<name>blur_filter</name><prompt>p</prompt></agent>"),
    "repeated agent": selection(BLUR + BLUR),
    "repeated agent with other white space": selection(BLUR + agent(" blur_filter ")),
    "unknown agent": selection(agent("no_such_filter")),
    "name of another case": selection(agent("Blur_Filter")),
    "empty name": selection(agent("")),
    "empty prompt": selection(agent(prompt="")),
    "blank prompt": selection(agent(prompt=" \n ")),
    "no prompt": selection("<agent><name>blur_filter</name></agent>"),
    "no name": selection("<agent><prompt>keep</prompt></agent>"),
    "prompt before name": selection("<agent><prompt>keep</prompt><name>blur_filter</name></agent>"),
    "two prompts": selection("<agent><name>blur_filter</name><prompt>a</prompt><prompt>b</prompt></agent>"),
    "two reasonings": selection(reasoning="<reasoning>a</reasoning><reasoning>b</reasoning>"),
    "two agent lists": selection().replace("</selection>", "<agents></agents></selection>"),
    "attribute": selection(BLUR.replace("<name>", '<name lang="en">')),
    "attribute of the list": selection(f'</agents><agents n="1">{BLUR}'),
    "name space": selection(BLUR.replace("<name>", '<name xmlns:a="urn:a">')),
    "comment": selection(BLUR + "<!-- that is all -->"),
    "comment in a text": selection(agent(prompt="keep<!-- all -->")),
    "processing instruction": selection(BLUR + "<?python exit() ?>"),
    "CDATA": selection(agent(prompt="<![CDATA[keep]]>")),
    "XML declaration": '<?xml version="1.0"?>' + selection(),
    "document type": "<!DOCTYPE selection>" + selection(),
    "external entity": '<!DOCTYPE s [<!ENTITY f SYSTEM "file:///etc/hostname">]>' + selection(agent(prompt="&f;")),
    "billion laughs": BILLION_LAUGHS + selection(agent(prompt="&l9;")),
    "undeclared entity": selection(agent(prompt="keep&nbsp;it")),
    "bare ampersand": selection(agent(prompt="blur & noise")),
    "bare less-than": selection(agent(prompt="blur < 0.5")),
    "end of CDATA in a text": selection(agent(prompt="keep ]]> it")),
    "element in the reasoning": selection(reasoning="<reasoning>too <b>soft</b></reasoning>"),
    "element in a name": selection(agent("<b>blur_filter</b>")),
    "nested agents": selection(f"<agent>{BLUR}</agent>"),
    "nested agents list": selection(f"<agents>{BLUR}</agents>"),
    "nested selection": selection(selection()),
    "unknown element": selection(BLUR + "<note>x</note>"),
    "unclosed agent": selection(BLUR.removesuffix("</agent>")),
    "crossed tags": selection("<agent><name>blur_filter<prompt></name>keep</prompt></agent>"),
    "control character": selection(agent(prompt="keep \x00 it")),
    "no character": selection(agent(prompt="keep \ufffe it")),
    "no character either": selection(agent(prompt="keep \uffff it")),
    "escape sign of a terminal": selection(agent(prompt="keep \x1b[1m it")),
    "half of a character": selection(agent(prompt="keep \ud83d it")),
}
NEITHER = {
    "nothing": "",
    "white space": " \n",
    "prose": "I would use the blur filter.",
    "no selection": f"<reasoning>r</reasoning><agents>{BLUR}</agents>",
    "missing reasoning": selection(reasoning=""),
    "missing agents": "<selection><reasoning>r</reasoning></selection>",
    "reasoning after agents": f"<selection><agents>{BLUR}</agents><reasoning>r</reasoning></selection>",
    "unclosed selection": selection().removesuffix("</selection>"),
    "unclosed agents": selection().replace("</agents>", ""),
    "unclosed reasoning": selection().replace("</reasoning>", ""),
    "closed before opened": "</selection></agents><agents></reasoning><reasoning><selection>",
    "capital letters": selection().upper(),
    "another word": selection().replace("selection>", "selections>"),
}


def score(reward, completion: str) -> float:
    [value] = reward([completion])
    return value


@pytest.mark.parametrize("completion", STRICT.values(), ids=STRICT)
def test_what_is_strict_is_lenient_too(completion):
    assert score(StrictXmlFormat(agents=[*DEFAULT_AGENTS, {"name": "vlm_judge", "model": "m"}]), completion) == 1.0
    assert score(XmlFormat(), completion) == 1.0


@pytest.mark.parametrize("completion", LENIENT_ONLY.values(), ids=LENIENT_ONLY)
def test_what_only_the_lenient_rule_accepts(completion):
    assert score(StrictXmlFormat(), completion) == 0.0
    assert score(XmlFormat(), completion) == 1.0


@pytest.mark.parametrize("completion", NEITHER.values(), ids=NEITHER)
def test_what_neither_accepts(completion):
    assert score(StrictXmlFormat(), completion) == 0.0
    assert score(XmlFormat(), completion) == 0.0


MARKUP = [position for position, letter in enumerate(selection(BLUR + EXPOSURE)) if letter in "<>/"]


@pytest.mark.parametrize("position", MARKUP)
def test_every_sign_of_markup_matters(position):
    text = selection(BLUR + EXPOSURE)
    assert score(StrictXmlFormat(), text) == 1.0
    assert score(StrictXmlFormat(), text[:position] + text[position + 1 :]) == 0.0


def test_every_unfinished_selection_is_refused():
    text = selection(BLUR + EXPOSURE)
    assert {score(StrictXmlFormat(), text[:end]) for end in range(len(text))} == {0.0}


def test_pairs_are_read_in_order_unescaped_and_stripped():
    text = selection(agent("a", " x &lt; 1 ") + agent("b", "y&#38;z") + agent("a", "again"))
    assert read_strict_selection(text) == [("a", "x < 1"), ("b", "y&z"), ("a", "again")]


def test_known_agents_are_the_recipes():
    reward = StrictXmlFormat(agents=["exposure_filter"])
    assert [score(reward, selection(one)) for one in (BLUR, EXPOSURE)] == [0.0, 1.0]


def test_unknown_agents_in_the_recipe_are_an_error():
    with pytest.raises(AgentError, match="unknown agent 'blurfilter'; expected one of blur_filter,"):
        StrictXmlFormat(agents=["blurfilter"])


def test_the_billion_laughs_are_not_told():
    assert read_strict_selection(BILLION_LAUGHS + selection(agent(prompt="&l9;"))) is None


xml_text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=80)
prompts = st.dictionaries(st.sampled_from(DEFAULT_AGENTS), xml_text.filter(str.strip))


@settings(PATIENT)
@given(prompts, xml_text)
def test_the_right_answer_as_it_is_written_for_training_is_strict(prompts, reasoning):
    text = format_selection(prompts, reasoning)
    assert read_strict_selection(text) == list(prompts.items())
    assert (score(StrictXmlFormat(), text), score(XmlFormat(), text)) == (1.0, 1.0)
    assert AgentSelection()([text], ground_truth_agents=[list(prompts)]) == [1.0]


@settings(PATIENT)
@given(prompts, xml_text)
def test_both_readers_find_the_same_agents_in_a_strict_selection(prompts, reasoning):
    text = format_selection(prompts, reasoning)
    selection = parse_selection(text).unescaped()
    assert [(name, selection.prompts[name]) for name in selection.agents] == read_strict_selection(text)


pieces = st.sampled_from(
    ["", " ", "\n", "\r\n", "\xa0", "\x00", "\x1c", "\ufffe", "\ud800", "\ufeff", "&amp;", "&", "<", ">"]
)
tags = st.sampled_from(
    [f"<{slash}{name}>" for name in ("selection", "agents", "agent", "prompt") for slash in ("", "/")]
)


@settings(PATIENT, max_examples=500)
@given(st.data())
def test_the_short_cut_for_usual_selections_agrees_with_the_xml_parser(data):
    text = selection(f"{BLUR}\n{EXPOSURE}")
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.integers(0, 2))
        text = text[:start] + data.draw(pieces | tags) + text[end:]
    found = read_strict_selection(text)
    with mock.patch.object(xml_format, "_PLAIN_SELECTION", re.compile("(?!)")):
        assert read_strict_selection(text) == found


def test_the_usual_selection_takes_the_short_cut():
    with mock.patch.object(xml_format.expat, "ParserCreate", side_effect=AssertionError("the parser was used")):
        assert score(StrictXmlFormat(), selection(BLUR + EXPOSURE)) == 1.0
