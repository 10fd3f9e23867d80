"""Agents made from the entries of a recipe, and the errors of entries that are wrong."""

import inspect
import sys

import pytest

from data.cli.user_code import import_named
from filter_agents.base import FilterAgent, Instruction
from filter_agents.executor import Executor
from filter_agents.registry import AGENTS, DEFAULT_AGENTS, AgentError, build_agent, build_agents

MODULE = """
from data.reports.pool import load_pool
from filter_agents.base import FilterAgent, Instruction


class EveryNth(FilterAgent):
    name = "every_nth"
    description = "keeps every nth item"

    def __init__(self, n: int, start: int = 0):
        self.n, self.start = n, start

    def read_prompt(self, prompt):
        return Instruction((), True)

    def keep(self, pool_folder, parameters):
        return load_pool(pool_folder).ids[self.start :: self.n]


class Nameless(FilterAgent):
    description = "has no name"
    read_prompt, keep = EveryNth.read_prompt, EveryNth.keep


class Undescribed(FilterAgent):
    name = "undescribed"
    read_prompt, keep = EveryNth.read_prompt, EveryNth.keep


class Unfinished(FilterAgent):
    name = "unfinished"
    description = "keeps nobody knows what"


def function():
    return 1
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's own, which can be imported as `my_agents`."""
    (tmp_path / "my_agents.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_agents", None)


def test_a_module_in_the_folder_of_the_command_is_found(tmp_path, monkeypatch):
    (tmp_path / "agents_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert build_agent({"name": "agents_here.EveryNth", "n": 2}).n == 2
    sys.modules.pop("agents_here")


def test_by_default_every_agent_without_a_model_is_made_in_order():
    assert list(build_agents()) == list(DEFAULT_AGENTS)


def test_every_built_in_agent_has_the_name_it_is_listed_by_and_one_line_of_description():
    for name, path in AGENTS.items():
        agent = import_named(path, "agent", [])
        assert agent.name == name
        assert "\n" not in agent.description.strip()
        assert inspect.getdoc(agent) != inspect.getdoc(FilterAgent)


def test_agents_keep_the_order_of_the_recipe():
    assert list(build_agents(["text_length_filter", "blur_filter"])) == ["text_length_filter", "blur_filter"]


def test_no_agents_is_not_the_default():
    assert build_agents([]) == {}


def test_an_agent_of_ones_own_is_made_with_its_arguments_and_run(own_module, flawed_pool):
    agents = build_agents([{"name": "my_agents.EveryNth", "n": 5, "start": 1}, "exact_duplicate_filter"])
    assert list(agents) == ["every_nth", "exact_duplicate_filter"]
    assert Executor(agents).run(str(flawed_pool), {"every_nth": ""}).kept == ["blurred", "wide", "disputed"]


def test_the_entry_itself_is_not_changed(own_module):
    entry = {"name": "my_agents.EveryNth", "n": 5}
    build_agent(entry)
    assert entry == {"name": "my_agents.EveryNth", "n": 5}


NAMES = ", ".join(AGENTS)
EXPECTED = f"{NAMES}, or one of your own as my_agents.NAME or my_agents.py:NAME"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "blur",
            f"unknown agent 'blur'; expected one of {EXPECTED}",
        ),
        ("", f"unknown agent ''; expected one of {EXPECTED}"),
        (
            "..blur",
            f"unknown agent '..blur'; expected one of {EXPECTED}",
        ),
        ({"name": 3}, "an entry of agents needs a 'name', found {'name': 3}"),
        ({"n": 3}, "an entry of agents needs a 'name', found {'n': 3}"),
        ({}, "an entry of agents needs a 'name', found {}"),
        (None, "an entry of agents needs a 'name', found None"),
        (["blur_filter"], "an entry of agents needs a 'name', found ['blur_filter']"),
        (
            {"name": "blur_filter", "limit": 1},
            "agent 'blur_filter': got an unexpected keyword argument 'limit'; it takes ()",
        ),
        ({"name": "vlm_judge"}, "agent 'vlm_judge': missing a required argument: 'model'; it takes (model: str, "),
        (
            "no_such_module.Agent",
            "agent 'no_such_module.Agent': cannot be imported (No module named 'no_such_module'); "
            f"known names: {NAMES}",
        ),
        (
            "my_agents.Missing",
            "agent 'my_agents.Missing': cannot be imported (module 'my_agents' has no attribute 'Missing'); known",
        ),
        (
            "my_agents.function",
            "agent 'my_agents.function': expected a subclass of filter_agents.base.FilterAgent, found ",
        ),
        ("os.path", "agent 'os.path': expected a subclass of filter_agents.base.FilterAgent, found <module "),
        (
            "my_agents.EveryNth",
            "agent 'my_agents.EveryNth': missing a required argument: 'n'; it takes (n: int, start: ",
        ),
        ("my_agents.Nameless", "agent 'my_agents.Nameless': its class sets no 'name'"),
        ("my_agents.Undescribed", "agent 'my_agents.Undescribed': its class sets no 'description'"),
        ("my_agents.Unfinished", "agent 'my_agents.Unfinished': its class does not define keep, read_prompt"),
    ],
)
def test_a_wrong_entry_is_named_with_what_was_expected(own_module, entry, message):
    with pytest.raises(AgentError) as caught:
        build_agents(["exposure_filter", entry])
    assert str(caught.value).startswith(message)


def test_an_agent_that_stands_twice_is_refused():
    with pytest.raises(AgentError, match="^duplicate agent 'blur_filter' in agents$"):
        build_agents(["blur_filter", "exposure_filter", {"name": "filter_agents.measurement_filters.BlurFilter"}])


def test_an_error_inside_a_module_of_ones_own_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_agents.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        build_agent("broken_agents.Agent")


def test_an_instruction_can_be_a_key():
    assert len({Instruction((1,), True), Instruction((1,), True), Instruction((2,), True)}) == 2
