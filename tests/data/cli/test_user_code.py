"""What a recipe names of a user's own, in a folder with files called like packages of ours."""

import sys

import pytest

import data
import rewards
import rewards.scoring
from data.cli.user_code import import_named

OURS = (rewards, rewards.scoring, data)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Function: writes a file into the current folder, which is the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for package in OURS:
        monkeypatch.setattr(package, "__path__", list(package.__path__))
    before = set(sys.modules)

    def write(name: str, source: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")

    yield write
    for name in set(sys.modules) - before:
        sys.modules.pop(name)
    for package in OURS:
        vars(package).pop("mine", None)


def found(name: str):
    return import_named(name, "reward", ["xml_format"])


@pytest.mark.parametrize("name", ["my_rewards.brevity", "my_rewards.py:brevity"])
def test_a_module_of_the_current_folder(own, name):
    own("my_rewards.py", "def brevity(): return 'mine'")
    assert found(name)() == "mine"


@pytest.mark.parametrize("name", ["rewards.mine.mine", "rewards/mine.py:mine"])
def test_a_module_in_a_folder_called_like_a_package_of_ours(own, name):
    own("rewards/helpers.py", "WORD = 'mine'")
    own("rewards/mine.py", "from .helpers import WORD\ndef mine(): return WORD")
    assert found(name)() == "mine"
    assert found("rewards.formats.xml_format.XmlFormat").name == "xml_format"


def test_both_spellings_are_one_function(own):
    own("rewards/scoring/mine.py", "def mine(): ...")
    assert found("rewards.scoring.mine.mine") is found("rewards/scoring/mine.py:mine")


def test_a_file_of_the_name_of_ours_is_named_by_its_file(own):
    own("data.py", "def mine(): return 'mine'")
    own("rewards/base.py", "def mine(): return 'mine too'")
    assert found("data.py:mine")() == "mine"
    assert found("rewards/base.py:mine")() == "mine too"
    with pytest.raises(ValueError, match="cannot be imported .*; to name the file here, write data.py:mine; known"):
        found("data.mine")
    assert sys.modules["data"] is data


def test_a_file_elsewhere(own, tmp_path):
    own("a-b/v1.0/mine.py", "def mine(): ...")
    here = found("a-b/v1.0/mine.py:mine")
    assert here is found(f"{tmp_path}/a-b/v1.0/mine.py:mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brevity", "unknown reward 'brevity'; expected one of xml_format, or one of your own as my_rewards.NAME or "),
        ("mine.py", "unknown reward 'mine.py'; expected one of xml_format, or one of your own as my_rewards.NAME or "),
        ("no.py:mine", r"reward 'no.py:mine': cannot be imported \(no such file: no.py\); known names: xml_format"),
        ("mine.py:no", r"reward 'mine.py:no': cannot be imported \(module 'mine' has no attribute 'no'\); known"),
        ("lacking.py:x", r"reward 'lacking.py:x': cannot be imported \(No module named 'not_there'\); known names"),
    ],
)
def test_what_is_not_there(own, name, message):
    own("mine.py", "")
    own("lacking.py", "import not_there")
    with pytest.raises(ValueError, match=message):
        found(name)
