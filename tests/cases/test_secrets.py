"""T9: nothing that looks like a token, or stands under a key that is named like one, is in any file of a run."""

import sys
from pathlib import Path

import pytest
import yaml

from data import secrets
from data.secrets import is_secret_key, recipe_without_secrets, remember_secrets, without_secrets

JUDGE = """
class Judge:
    name = "judge"

    def __init__(self, api_key, endpoint, login):
        self.__name__ = "judge"

    def __call__(self, completions, **columns):
        return [float(len(str(completion))) / 1000 for completion in completions]
"""
PLANTED = {
    "comment": "hf_CommentCommentComment01",
    "comment under a key": "plain-password-02",
    "run_name": "ghp_RunNameRunNameRunName03",
    "model_init_kwargs": "weights-token-04",
    "reward parameter": "judge-api-key-05",
    "reward address": "user06:pass06",
    "reward parameter, nested": "nested-secret-07",
    "env": "env-value-08",
    "env, short": "Zq9-w",  # no letters of hashes, which stand in the files by the hundred
    "hub_token": "hub-token-value-10",
    "command line": "sk-proj-CommandLineCommand11",
    "environment variable": "from-the-environment-12",
    "environment variable in a comment": "from-the-environment-13",
    "aws": "AKIAABCDEFGHIJKLMN14",
    "google": "AIzaSyAbcdefghijklmnopqrstuvwxyz15",
    "gitlab": "glpat-abcdefghijkl16",
    "slack": "xoxb-1234567890-abcdef17",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxOCJ9.c2lnbmF0dXJlMTg",
    "bearer": "Bearer abcdefghijkl.mno19",
    "github": "github_pat_11ABCDEFG0abcdefghij20",
}


def _recipe(model: Path, data: Path, output: Path) -> str:
    """A GRPO recipe of one step with secrets in every place where users have put them."""
    values = {
        "model_name_or_path": str(model),
        "dtype": "float32",
        "model_init_kwargs": {"token": PLANTED["model_init_kwargs"]},
        "dataset_name": str(data),
        "reward_funcs": [
            "xml_format",
            {
                "name": "judge_of_secrets.Judge",
                "api_key": PLANTED["reward parameter"],
                "endpoint": f"https://{PLANTED['reward address']}@host.example/v1",
                "login": {"password": PLANTED["reward parameter, nested"], "max_tokens": 5},
            },
        ],
        "run_name": f"run {PLANTED['run_name']} {PLANTED['jwt']}",
        "env": {"SOME_SETTING": PLANTED["env"], "SHORT": PLANTED["env, short"]},
        "hub_token": PLANTED["hub_token"],
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "save_steps": 1,
        "max_pixels": 1024,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "output_dir": str(output),
    }
    comments = [PLANTED[name] for name in ("comment", "environment variable in a comment", "aws", "google", "gitlab")]
    comments += [
        f"password: {PLANTED['comment under a key']}",
        PLANTED["slack"],
        f"Authorization: {PLANTED['bearer']}",
    ]
    return "".join(f"# {comment}\n" for comment in comments) + yaml.safe_dump(values)


@pytest.fixture
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(secrets, "_remembered", set())


def test_t09_no_file_of_a_run_has_a_secret(tiny_model, report_data, tmp_path, monkeypatch, nothing_remembered):
    from trainers import grpo

    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "judge_of_secrets.py").write_text(JUDGE, encoding="utf-8")
    monkeypatch.setenv("MY_SERVICE_TOKEN", PLANTED["environment variable"])
    monkeypatch.setenv("OTHER_PASSWORD", PLANTED["environment variable in a comment"])
    monkeypatch.setenv("HF_TOKEN", "")
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(_recipe(tiny_model, report_data, output), encoding="utf-8")
    name = f"run {PLANTED['run_name']} {PLANTED['environment variable']}"
    command = ["--config", str(recipe), "--run_name", name, "--project", PLANTED["command line"]]
    monkeypatch.setattr(sys, "argv", ["trainers/grpo.py", *command])
    grpo.main(command)

    files = [path for path in output.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"recipe.yaml", "README.md", "report.html", "training_args.bin", "run.json", "trainer_state.json"} <= names
    assert any(path.parent.name == "checkpoint-1" and path.name == "training_args.bin" for path in files)
    found = [
        f"{path}: {what}" for path in files for what, text in PLANTED.items() if text.encode() in path.read_bytes()
    ]
    assert found == []
    stored = yaml.safe_load((output / "recipe.yaml").read_text(encoding="utf-8"))
    assert stored["model_name_or_path"] == str(tiny_model)  # what is no secret is kept
    assert stored["reward_funcs"][1]["login"]["max_tokens"] == 5
    assert "host.example" in stored["reward_funcs"][1]["endpoint"]


SECRET_KEYS = """token key secret password auth API_KEY api-key hubToken dbPassword client_secret passphrase
    Authorization aws_secret_access_key openai.api_key credentials api_keys passwd ACCESS_TOKEN""".split()
OTHER_KEYS = """max_tokens eos_token pad_token num_key_value_heads keep_groups_together tokenizer keys author authors
    suppress_tokens monkey max_completion_length image_token tokens_per_second keyboard""".split()
LOOKS_LIKE_A_TOKEN = "comment/run_name/command line/aws/google/gitlab/slack/jwt/bearer/github".split("/")
RESEMBLES_A_TOKEN = "task-with-a-very-long-name hf_hub a/sk-learn risk-management-of-things-that-matter".split()


@pytest.mark.parametrize("name", SECRET_KEYS)
def test_t09_keys_of_secrets(name):
    assert is_secret_key(name)
    assert without_secrets({"a": [{name: "x"}]}) == {"a": [{name: "***"}]}
    for text in (f"# {name}: abc", f'{{"{name}": "abc"}}', f"--{name} abc", f"--{name}=abc"):
        assert "abc" not in without_secrets(text)


@pytest.mark.parametrize("name", OTHER_KEYS)
def test_t09_keys_of_what_is_no_secret(name):
    assert not is_secret_key(name)
    assert without_secrets({name: "value"}) == {name: "value"}
    assert without_secrets(f"{name}: value") == f"{name}: value"


@pytest.mark.parametrize("name", LOOKS_LIKE_A_TOKEN)
def test_t09_what_looks_like_a_token_is_hidden_anywhere(nothing_remembered, name):
    text = PLANTED[name]
    for form in (text, f"before {text} after", f"x={text}&y", f'["{text}"]'):
        assert text not in without_secrets(form)
        assert without_secrets({"note": [form]}) != {"note": [form]}


@pytest.mark.parametrize("text", RESEMBLES_A_TOKEN)
def test_t09_what_only_resembles_a_token_is_kept(nothing_remembered, text):
    assert without_secrets(text) == text


def test_t09_a_secret_is_also_hidden_where_it_appears_again(nothing_remembered):
    remember_secrets({"env": {"MY_TOKEN": "swordfish"}, "rewards": [{"api_key": "open sesame"}], "tokens": "hundred"})
    assert without_secrets("swordfish, open sesame, hundred") == "***, ***, hundred"


YAML = [
    ("token: a.b", {"token": "***"}),
    ("env: {A: 'false', B: 1}", {"env": {"A": "***", "B": "***"}}),
    ("env:\n  A: |\n    first\n    second\nb: 1", {"env": {"A": "***"}, "b": 1}),
    ("password: >-\n  two\n  lines\nmodel: x", {"password": "***", "model": "x"}),
    ("keys: [a, b]\napi_keys: [c, d]", {"keys": ["a", "b"], "api_keys": ["***", "***"]}),
    ("token: null\nmax_tokens: 5", {"token": None, "max_tokens": 5}),
]


@pytest.mark.parametrize(("text", "expected"), YAML)
def test_t09_a_stored_recipe_is_still_a_recipe(nothing_remembered, text, expected):
    assert yaml.safe_load(recipe_without_secrets(text)) == expected
