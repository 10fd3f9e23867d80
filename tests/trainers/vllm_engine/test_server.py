"""A server for rollouts: its command, whether it is there, and whether it computes as the trainer does."""

import http.server
import threading
from types import SimpleNamespace

import pytest

from trainers.vllm_engine import checks
from trainers.vllm_engine.checks import say_how_to_serve
from trainers.vllm_engine.server import (
    ServerMismatch,
    check_server,
    forget_all,
    server_answers,
    server_command,
    server_url,
)

SETTINGS = {"dtype": "bfloat16", "mm_processor_kwargs": {"size": {"shortest_edge": 784, "longest_edge": 4704}}}
ARGS = SimpleNamespace(
    vllm_server_base_url=None, vllm_server_host="127.0.0.1", vllm_server_port=1, trust_remote_code=False
)


@pytest.fixture
def asked():
    """What a server was told."""
    return []


@pytest.fixture
def healthy(asked):
    """Address of a server that says that it is up."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def do_POST(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_is_up_needs_no_word(healthy, capsys):
    assert server_answers(healthy)
    args = SimpleNamespace(**vars(ARGS) | {"vllm_server_base_url": healthy})
    say_how_to_serve(args, SimpleNamespace(model_name_or_path="m"), SETTINGS)
    assert capsys.readouterr().out == ""


def test_pictures_are_forgotten_with_the_prompts(healthy, asked):
    forget_all(healthy, lambda: asked.append("prompts"))
    assert asked == ["prompts", "/reset_encoder_cache"]


def test_how_one_is_started_is_said_where_none_answers(capsys, monkeypatch):
    monkeypatch.setattr(checks, "vllm_version", lambda: None)
    assert server_url(ARGS) == "http://127.0.0.1:1"
    say_how_to_serve(ARGS, SimpleNamespace(model_name_or_path="a model"), SETTINGS)
    printed = capsys.readouterr().out
    assert printed.startswith("note: no vLLM server answers at http://127.0.0.1:1 yet; to start one for this recipe: ")
    assert "vllm serve 'a model' --port 1 --dtype bfloat16 --mm-processor-kwargs '{\"size\": {\"shortest" in printed
    assert "--logprobs-mode processed_logprobs" in printed
    assert "--enable-scale-out" not in printed
    assert "--enable-scale-out" in server_command("m", ARGS, SETTINGS, scale_out=True)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"dtype": "torch.float16"},
            "dtype of the server at here is float16, of the trainer bfloat16; .* --dtype bfl",
        ),
        (
            {"dtype": "torch.bfloat16", "multimodal_config": {"mm_processor_kwargs": None}},
            "mm_processor_kwargs of the",
        ),
        ({"dtype": "torch.bfloat16"}, "mm_processor_kwargs of the server at here is {}, of the trainer {'size'"),
    ],
)
def test_a_server_that_computes_otherwise(model, expected):
    with pytest.raises(ServerMismatch, match=f"vllm_mode: server: {expected}"):
        check_server("here", {"model_config": model}, SETTINGS)


def test_a_server_that_computes_as_the_trainer_does():
    model = {"dtype": "torch.bfloat16", "multimodal_config": {k: v for k, v in SETTINGS.items() if k != "dtype"}}
    check_server("here", {"model_config": model}, SETTINGS)
    model["multimodal_config"]["mm_processor_kwargs"] = SETTINGS["mm_processor_kwargs"] | {"do_normalize": False}
    check_server("here", {"model_config": model}, SETTINGS)
