"""`push_to_hub: true`, against a Hub on the loopback interface: what arrives there, and what happens if it cannot."""

import hashlib
import urllib.error
import urllib.request
from types import SimpleNamespace

import pytest
import yaml
from hub_server import HubServer
from tiny_recipes import write_grpo_recipe

REPO_ID = "someone/tiny-grpo"
MODEL_FILES = {"model.safetensors", "config.json", "generation_config.json"}
PROCESSOR_FILES = {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"}
RECORD_FILES = {"README.md", "recipe.yaml", "report.html", "trainer_state.json", "run.json"}
FIGURES = {"figures/reward.png", "figures/loss.png"}
CHECKPOINT_PARTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth")

UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
assert api.whoami()["name"] == "someone"
api.create_repo("someone/files", exist_ok=True)
api.create_repo("someone/files", exist_ok=True)
for message in ("first", "unchanged"):
    api.upload_folder(repo_id="someone/files", folder_path=sys.argv[1], commit_message=message)
api.delete_file("below/text.md", "someone/files")
print(*api.list_repo_files("someone/files"))
print(api.file_exists("someone/files", "absent"), len(open(api.hf_hub_download("someone/files", "big"), "rb").read()))
"""

COMPARE = """
import sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which shape is red?"}]}]
logits = []
for source in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(source)
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.new("RGB", (56, 56), "red")], return_tensors="pt")
    with torch.no_grad():
        logits.append(AutoModelForImageTextToText.from_pretrained(source)(**inputs).logits)
print("the same" if torch.equal(*logits) and logits[0].isfinite().all() else "different")
"""

PATIENT_REWARD = """
import time
calls = 0
def patient(completions, **columns):
    global calls
    calls += 1
    time.sleep(4 if calls == 2 else 0)
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def push(run_warm, tiny_model, report_data, tmp_path_factory):
    """Function: server, changes to a recipe of one GRPO step, variables -> folder and process."""

    def run(hub: HubServer, *arguments: str, variables: dict | None = None, **changes) -> SimpleNamespace:
        place = tmp_path_factory.mktemp("push")
        hub_settings = {"push_to_hub": True, "hub_model_id": REPO_ID}
        steps = {"max_completion_length": 8, "max_steps": 1, "logging_steps": 1, "save_strategy": "no"}
        path = write_grpo_recipe(place, tiny_model, report_data, **hub_settings | steps | changes)
        environment = hub.environment(HF_HOME=str(place / "home"), **variables or {})
        process = run_warm("trainers/grpo.py", "--config", path, *arguments, **environment)
        return SimpleNamespace(hub=hub, folder=place / "run", process=process, recipe=path.read_text(encoding="utf-8"))

    return run


@pytest.fixture(scope="module")
def pushed(push):
    """A run of one step, pushed to a private repository at its end."""
    with HubServer() as hub:
        run = push(hub, hub_private_repo=True)
        assert run.process.returncode == 0, run.process.stderr
        yield run


def _messages(hub: HubServer) -> list[str]:
    return [commit["message"] for commit in hub.repos[REPO_ID]["commits"]]


def _assert_files_are_local(run: SimpleNamespace) -> None:
    """Everything in the repository is what the output folder holds, and nothing of the folder is missing."""
    remote = {path: content for path, content in run.hub.repos[REPO_ID]["files"].items() if path != ".gitattributes"}
    local = {path.relative_to(run.folder).as_posix(): path for path in run.folder.rglob("*") if path.is_file()}
    assert set(remote) == {path for path in local if not path.startswith("checkpoint-")}
    assert [path for path, content in remote.items() if local[path].read_bytes() != content] == []


# -- the server itself -----------------------------------------------------------------------------------------------


def test_server_takes_uploads_as_the_hub_does(run_warm, tmp_path):
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    (folder / "big").write_bytes(bytes(range(256)) * 20)
    (folder / "small").write_bytes(b"\0\1\2")
    (folder / "below" / "text.md").write_text("plain", encoding="utf-8")
    with HubServer(part_size=2000) as hub:
        (tmp_path / "upload.py").write_text(UPLOAD, encoding="utf-8")
        done = run_warm(tmp_path / "upload.py", folder, **hub.environment(HF_HOME=str(tmp_path / "home")))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [".gitattributes big small", "False 5120"]
        assert [commit["message"] for commit in hub.repos["someone/files"]["commits"]][:2] == [
            "initial commit",
            "first",
        ]
        assert len(hub.repos["someone/files"]["commits"]) == 3  # what has not changed is not committed again
        parts = [path for method, path, _ in hub.requests if method == "PUT" and path.count("/") == 4]
        assert len(parts) == 3
        assert hub.unexpected == []


def _status(
    hub: HubServer, path: str, token: str | None = None, method: str = "GET", body: bytes | None = None
) -> int:
    request = urllib.request.Request(hub.endpoint + path, data=body, method=method)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_server_refuses():
    with HubServer() as hub:
        assert _status(hub, "/api/whoami-v2", hub.token) == 200
        assert _status(hub, "/api/whoami-v2") == 401
        assert _status(hub, "/api/whoami-v2", "hf_other") == 401
        oid = hashlib.sha256(b"content").hexdigest()
        address = f"/signed/{hub._signature}/{oid}"
        assert _status(hub, address, method="PUT", body=b"damaged") == 400
        assert _status(hub, address, method="PUT", body=b"content") == 200
        assert _status(hub, f"/signed/guess/{oid}", method="PUT", body=b"content") == 403
        assert hub.unexpected == []
        assert _status(hub, "/api/models/someone", hub.token) == 404
        assert hub.unexpected == ["GET /api/models/someone"]


# -- a push at the end of a run --------------------------------------------------------------------------------------


def test_everything_arrives_in_one_commit(pushed):
    assert set(pushed.hub.repos[REPO_ID]["files"]) >= MODEL_FILES | PROCESSOR_FILES | RECORD_FILES | FIGURES
    assert _messages(pushed.hub) == ["initial commit", "GRPO after 1 steps"]
    assert f"pushed to {REPO_ID}" in pushed.process.stdout
    assert pushed.hub.unexpected == []
    _assert_files_are_local(pushed)


def test_no_state_of_the_optimizer_unless_asked_for(pushed):
    assert [path for path in pushed.hub.repos[REPO_ID]["files"] if path.endswith(CHECKPOINT_PARTS)] == []


def test_private_repository(pushed):
    assert pushed.hub.repos[REPO_ID]["private"] is True


def test_recipe_arrives_as_it_was_written(pushed):
    assert pushed.hub.repos[REPO_ID]["files"]["recipe.yaml"].decode() == pushed.recipe


def test_card(pushed, report_data):
    card = pushed.hub.repos[REPO_ID]["files"]["README.md"].decode()
    _, front, text = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-text-to-text"
    assert {"trl", "grpo"} <= set(metadata["tags"])
    for expected in (
        "# tiny-grpo",
        f"**Data:** `{report_data}`",
        "`agent_selection`, `strict_xml_format`",
        "| rewards/agent_selection/mean |",
        "python trainers/grpo.py --config",
        f'from_pretrained("{REPO_ID}")',
        "max_completion_length: 8",
    ):
        assert expected in text
    figures = [line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert figures
    assert set(figures) <= set(pushed.hub.repos[REPO_ID]["files"])


def test_loads_from_the_hub_as_from_the_folder(pushed, run_warm, tmp_path):
    environment = pushed.hub.environment(HF_HOME=str(tmp_path / "home"))
    (tmp_path / "compare.py").write_text(COMPARE, encoding="utf-8")
    done = run_warm(tmp_path / "compare.py", REPO_ID, pushed.folder, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "the same"
    assert ("GET", f"/{REPO_ID}/resolve/main/model.safetensors", 200) in _of_any_revision(pushed.hub)
    assert pushed.hub.unexpected == []


def _of_any_revision(hub: HubServer) -> list[tuple[str, str, int]]:
    head = hub.repos[REPO_ID]["commits"][-1]["oid"]
    return [(method, path.replace(f"/{head}/", "/main/"), status) for method, path, status in hub.requests]


# -- pushes while training -------------------------------------------------------------------------------------------


def test_every_save_pushes_and_the_token_stays_at_home(push, tmp_path):
    """A push that is still going on skips the next one, so the second step waits for the first step's push."""
    (tmp_path / "patient_reward.py").write_text(PATIENT_REWARD, encoding="utf-8")
    variables = {"HF_TOKEN": "", "PYTHONPATH": str(tmp_path)}
    changes = {"hub_strategy": "every_save", "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    changes["reward_funcs"] = ["agent_selection", "patient_reward.patient"]
    with HubServer() as hub:
        run = push(hub, "--hub_token", hub.token, variables=variables, hub_token=hub.token, **changes)
    assert run.process.returncode == 0, run.process.stderr
    progress = [f"Training in progress, step {step}" for step in (1, 2)]
    assert _messages(hub) == ["initial commit", *progress, "GRPO after 2 steps"]
    assert "a push while training failed" not in run.process.stderr
    assert hub.unexpected == []
    assert FIGURES | {"report.html"} <= set(hub.repos[REPO_ID]["commits"][1]["paths"])
    _assert_files_are_local(run)
    files = hub.repos[REPO_ID]["files"]
    assert [path for path, content in files.items() if hub.token.encode() in content] == []
    recipe = files["recipe.yaml"].decode()
    assert 'hub_token: "***"' in recipe
    assert "on the command line: --hub_token '***'" in recipe
    assert hub.repos[REPO_ID]["private"] is False


# -- pushes that fail ------------------------------------------------------------------------------------------------


def test_wrong_token_ends_before_training(push):
    with HubServer() as hub:
        run = push(hub, variables={"HF_TOKEN": "hf_wrong_token"})
    assert run.process.returncode == 1
    assert f"error: push_to_hub: '{REPO_ID}' cannot be created on the Hub: " in run.process.stderr
    assert "401" in run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert "'loss'" not in run.process.stdout
    assert hub.repos == {}


def test_refused_at_the_end_but_nothing_is_lost(push):
    """The checkpoint that `hub_strategy: checkpoint` asks for arrives whole; the model beside it is refused twice."""
    with HubServer() as hub:
        hub.refuse = "^Training in progress, step 1$|^GRPO after"
        run = push(hub, hub_strategy="checkpoint", save_strategy="steps", save_steps=1, logging_steps=10)
    assert run.process.returncode == 1
    assert "a push while training failed: 403 Forbidden" in " ".join(run.process.stderr.split())
    assert "error: push_to_hub: 403 Forbidden: This repository is read-only." in run.process.stderr
    assert f"hf upload {REPO_ID} {run.folder} --exclude 'checkpoint-*'" in run.process.stderr
    assert "Traceback" not in run.process.stderr
    assert f"model saved to {run.folder}" in run.process.stdout
    local = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert local >= MODEL_FILES | PROCESSOR_FILES | RECORD_FILES
    last = {path for path in hub.repos[REPO_ID]["files"] if path.startswith("last-checkpoint/")}
    wanted = {*CHECKPOINT_PARTS, "trainer_state.json", "posttrain_state.json", "complete.json"}
    assert last >= {f"last-checkpoint/{name}" for name in wanted}
