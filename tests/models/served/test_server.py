"""Whatever a server does: every answer is the right one, none is lost, and none is asked for twice."""

import asyncio
import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from chat_server import FAULTS, FaultyChatServer, content_of, picture_of
from PIL import Image
from places import ROOT

from data.io.records import RecordError
from models.served import answer_files, attempts, client
from models.served.errors import ServerError
from models.served.requests import ChatRequest
from models.served.server import ChatServer, ServerSettings


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)


def request_of(number: int, **settings) -> ChatRequest:
    content = [{"type": "image"}, {"type": "text", "text": f"question {number}"}]
    picture = Image.new("RGB", (8 + number, 8), (number, 10, 20))
    return ChatRequest([{"role": "user", "content": content}], [picture], **settings)


def expected(number: int, count: int = 1) -> list[str]:
    picture = request_of(number).images[0]
    from data.io.digests import picture_digest

    return [f"question {number} {picture_digest(picture)[:8]} {index}" for index in range(count)]


def server_at(server: FaultyChatServer, cache=None, **settings) -> ChatServer:
    quick = {"timeout": 20.0, "concurrency": 4}
    return ChatServer(ServerSettings(server.address, **{**quick, **settings}), cache)


def texts(found) -> list[list[str]]:
    return [[completion.text for completion in one] for one in found]


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_it_is_asked_again_and_only_then(fault):
    """Every second attempt fails."""
    with FaultyChatServer(lambda number, body: fault if number % 2 else None) as faulty:
        patience = 1.0 if fault == "timeout" else 20.0
        server = server_at(faulty, concurrency=1, retries=1, timeout=patience)
        found = server.answers([request_of(number, num_generations=2) for number in range(3)])
        assert texts(found) == [expected(number, 2) for number in range(3)]
        assert len(faulty.bodies) == 5  # good; fault, good; fault, good
        assert server.counts == {"asked": 3, "calls": 6, "retries": 2}  # and one for the list of models


def test_all_faults_at_once_lose_nothing_and_ask_nothing_twice(tmp_path):
    import random

    chance, kinds = random.Random(0), [fault for fault in FAULTS if fault != "timeout"]
    faults = {number: chance.choice(kinds) for number in range(500) if chance.random() < 0.35}
    with FaultyChatServer(lambda number, body: faults.get(number)) as faulty:
        server = server_at(faulty, tmp_path, retries=12, concurrency=8)
        found = server.answers([request_of(number % 40, num_generations=3) for number in range(60)])
        assert texts(found) == [expected(number % 40, 3) for number in range(60)]
        failed = sum(number in faults for number in range(len(faulty.bodies)))
        assert failed > 5
        assert len(faulty.bodies) == 40 + failed
        assert Counter(map(content_of, faulty.answered)).most_common(1)[0][1] == 1
        assert server.counts["cached"] == 20
        assert faulty.most_at_once <= 8


def test_images_come_pixel_for_pixel():
    noise = Image.frombytes("RGB", (21, 13), os.urandom(21 * 13 * 3))
    content = [{"type": "text", "text": "first"}, {"type": "image"}, {"type": "text", "text": "then"}]
    with FaultyChatServer() as faulty:
        server_at(faulty).answers([ChatRequest([{"role": "user", "content": content}], [noise])])
        parts = faulty.bodies[0]["messages"][0]["content"]
        assert [part["type"] for part in parts] == ["text", "image_url", "text"]
        assert picture_of(parts[1]).tobytes() == noise.tobytes()


def test_no_more_at_once_than_allowed():
    with FaultyChatServer(delay=0.03) as faulty:
        server_at(faulty, concurrency=3).answers([request_of(number) for number in range(12)])
        assert faulty.most_at_once == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 307])
def test_what_is_refused_is_not_asked_again(status):
    with FaultyChatServer(lambda number, body: f"HTTP {status}") as faulty:
        said = rf"/chat/completions: found HTTP {status}: failing with {status}; expected 1 whole completion"
        with pytest.raises(ServerError, match=said):
            server_at(faulty).answers([request_of(0)])
        assert len(faulty.bodies) == 1


def test_a_refusal_stops_the_others_and_keeps_what_is_under_way(tmp_path):
    def faults(number, body):
        return "HTTP 400" if "question 2 " in content_of(body) else None

    with FaultyChatServer(faults, delay=0.02) as faulty:
        requests = [request_of(number) for number in range(20)]
        with pytest.raises(ServerError, match=f"is kept in {tmp_path}: run the command again to go on"):
            server_at(faulty, tmp_path, concurrency=4).answers(requests)
        first = len(faulty.bodies)
        assert first < 12
        faulty.faults = lambda number, body: None
        assert texts(server_at(faulty, tmp_path).answers(requests)) == [expected(number) for number in range(20)]
        assert len(faulty.bodies) == 21, "what was answered in the first run was asked for again"


def test_after_the_last_attempt_the_message_says_what_was_found_and_expected():
    with FaultyChatServer(lambda number, body: "fewer") as faulty:
        with pytest.raises(ServerError) as caught:
            server_at(faulty, retries=2).answers([request_of(0, num_generations=4)])
        wanted = "found 3 completions in place of 4 in the last of 3 attempts; expected 4 whole completions"
        assert str(caught.value) == f"{faulty.address}/chat/completions: {wanted}"
        assert len(faulty.bodies) == 3


def test_all_wait_as_long_as_the_server_asks():
    def faults(number, body):
        if number == 0:
            return "429"
        time.sleep(0.1 if number == 1 else 0.0)  # so that the third is asked for after the first was put off

    with FaultyChatServer(faults, retry_after="0.4") as faulty:
        server_at(faulty, concurrency=2).answers([request_of(0), request_of(1), request_of(2)])
        assert min(faulty.times[2:]) - faulty.times[0] >= 0.4
        assert len(faulty.times) == 4


def test_a_server_that_asks_to_wait_for_hours_ends_the_run():
    with FaultyChatServer(lambda number, body: "429", retry_after="7200") as faulty:
        with pytest.raises(ServerError, match="asks to wait 7200 seconds; run the command again then"):
            server_at(faulty).answers([request_of(0)])
        assert len(faulty.bodies) == 1


def test_pauses_grow_up_to_a_longest_one(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.08)
    with FaultyChatServer(lambda number, body: "500") as faulty:
        with pytest.raises(ServerError):
            server_at(faulty, retries=3).answers([request_of(0)])
        pauses = [after - before for before, after in itertools.pairwise(faulty.times)]
        assert all(pause >= 0.04 * 2**number for number, pause in enumerate(pauses))
        monkeypatch.setattr(attempts, "FIRST_PAUSE", 40.0)
        monkeypatch.setattr(attempts, "LONGEST_PAUSE", 0.01)
        with pytest.raises(ServerError):
            server_at(faulty, retries=1).answers([request_of(1)])
        assert faulty.times[-1] - faulty.times[-2] < 20


def test_nobody_there_is_said_at_once():
    with FaultyChatServer() as faulty:
        address = faulty.address
    started = time.monotonic()
    with pytest.raises(
        ServerError, match=r"127.0.0.1.*/models: found connect error .*; expected a server that speaks"
    ):
        ChatServer(ServerSettings(address))
    assert time.monotonic() - started < 2


def test_a_port_that_takes_all_and_says_nothing_is_told_soon(monkeypatch):
    monkeypatch.setattr(client, "LIST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match="/models: found no answer within 0.2 seconds"):
            ChatServer(ServerSettings(address, timeout=30.0))


def test_a_server_of_another_kind_is_told_at_once(monkeypatch):
    with FaultyChatServer() as faulty:
        monkeypatch.setattr(attempts, "FIRST_PAUSE", 60.0)
        faulty.lists_models = "<html>Welcome</html>"
        with pytest.raises(
            ServerError, match="found no JSON but text/html: '<html>Welcome</html>'; expected a server"
        ):
            server_at(faulty)
        faulty.lists_models = 404
        with pytest.raises(ServerError, match="HTTP 404: no list"):
            server_at(faulty)
        assert server_at(faulty, model="named").model.name == "named"


def test_the_key_is_sent_and_shown_nowhere(tmp_path):
    secret = "very-secret-key-of-mine"
    with FaultyChatServer(key=secret) as faulty:
        server = server_at(faulty, tmp_path, key=secret, key_variable="MY_KEY")
        server.answers([request_of(0)])
        assert set(faulty.keys) == {f"Bearer {secret}"}
        assert secret not in repr(server.settings)
        assert all(secret not in path.read_text() for path in tmp_path.iterdir())
        with pytest.raises(ServerError, match="HTTP 401: Unauthorized.*MY_KEY, which is not set"):
            server_at(faulty, key_variable="MY_KEY")
        faulty.faults, faulty.key = lambda number, body: "HTTP 400", None
        faulty.answer = lambda body: [""]
        with pytest.raises(ServerError) as caught:
            server_at(faulty, key=secret).answers([ChatRequest([{"role": "user", "content": "hm"}])])
        assert secret not in str(caught.value)


def test_answers_are_kept_by_content(tmp_path):
    with FaultyChatServer() as faulty:
        first = server_at(faulty, tmp_path)
        first.answers([request_of(0), request_of(1)])
        again = server_at(faulty, tmp_path)
        again.answers([request_of(0), request_of(1), request_of(0)])
        assert again.counts["cached"] == 3
        assert len(faulty.bodies) == 2
        others = {"max_new_tokens": 9, "num_generations": 2, "top_p": 0.9, "first_tokens": False, "temperature": 0.5}
        for name, value in others.items():
            again.answers([request_of(0, **{name: value})])
        assert len(faulty.bodies) == 6
        again.answers([request_of(0, seed=7)])  # which greedy answers do not depend on
        again.answers([request_of(0, temperature=0.5, seed=7)])
        assert len(faulty.bodies) == 7


def test_another_model_is_asked_anew(tmp_path):
    with FaultyChatServer(models=("one", "two")) as faulty:
        for name in ("one", "two", "one"):
            server_at(faulty, tmp_path, model=name).answers([request_of(0)])
        assert [body["model"] for body in faulty.bodies] == ["one", "two"]


def test_from_asynchronous_code():
    async def ask(server):
        found = await asyncio.gather(*(server.ask(request_of(number)) for number in (0, 1, 0)))
        await server.close()
        return found

    with FaultyChatServer(delay=0.02) as faulty:
        server = server_at(faulty)
        for _ in range(2):  # in a loop of its own each time
            assert texts(asyncio.run(ask(server))) == [expected(0), expected(1), expected(0)]
        assert len(faulty.bodies) == 2


def completion(text: str = "It is.", reason: str = "stop", **more) -> dict:
    choice = {"index": 0, "message": {"content": text}, "finish_reason": reason}
    return {"choices": [{**choice, **more}]}


def first_token(token: str, value: float) -> dict:
    return {"content": [{"token": token, "logprob": value, "top_logprobs": [{"token": token, "logprob": value}]}]}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({**completion(), "error": {"message": "the engine is dead"}}, "an error with HTTP 200: the engine is dead"),
        (completion(reason="content_filter"), r"not finished \(finish_reason 'content_filter'\)"),
        (completion("", reason="tool_calls"), r"not finished \(finish_reason 'tool_calls'\)"),
        (completion(index=1), r"choices with the indices \[1\]"),
        (completion(logprobs=first_token("Yes", float("nan"))), "nan as log-probability of 'Yes'"),
        (completion(logprobs=first_token("Yes", 0.5)), "0.5 as log-probability of 'Yes'"),
        (completion(logprobs=first_token("Yes", None)), "log-probabilities of another form"),
        (completion(logprobs=first_token(None, -1.0)), "log-probabilities of another form"),
        (b"[" * 100_000, "no JSON but"),
    ],
)
def test_what_is_no_whole_answer_is_never_taken(answer, found):
    sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with FaultyChatServer(lambda number, body: sent) as faulty:
        with pytest.raises(ServerError, match=found):
            server_at(faulty, retries=1).answers([request_of(0, first_tokens=True)])
        assert len(faulty.bodies) == 2


def test_what_servers_may_write_otherwise(tmp_path):
    answer = {**completion(index=None, logprobs=first_token("\ud83d", -0.1)), "error": None}
    with FaultyChatServer(lambda number, body: json.dumps(answer).encode()) as faulty:
        [[found]] = server_at(faulty, tmp_path).answers([request_of(0, first_tokens=True)])
    assert (found.text, found.first_tokens) == ("It is.", (("\ufffd", -0.1),))


def test_half_of_a_character_reaches_the_server():
    with FaultyChatServer() as faulty:
        server_at(faulty).answers([ChatRequest([{"role": "user", "content": "so \ud83d"}])])
        assert faulty.bodies[0]["messages"][0]["content"] == "so \ud83d"


def test_a_full_disk_stops_the_others_as_a_refusal_does(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with FaultyChatServer(delay=0.02) as faulty:
        server = server_at(faulty, tmp_path, concurrency=2)
        monkeypatch.setattr(answer_files, "append_line", full)
        with pytest.raises(OSError, match="No space left"):
            server.answers([request_of(number) for number in range(20)])
        assert len(faulty.bodies) <= 4, "answers that could not be kept were asked for"


@pytest.mark.parametrize("line", ['{"key": 3, "answer": []}', '{"key": "a"}', "[1]", "null", '"text"', "{", ""])
def test_a_line_that_is_none_of_answers_is_named(line, tmp_path):
    (tmp_path / "served-0.jsonl").write_text('{"key": "a", "answer": []}\n' + line + "\n")
    with FaultyChatServer() as faulty, pytest.raises(RecordError, match=r"served-0.jsonl:2: not a line of stored"):
        server_at(faulty, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "socks9://localhost:1"), ("HTTP_PROXY", "carrier://x"), ("SSL_CERT_FILE", "/nowhere.pem")],
)
def test_an_environment_in_which_nothing_can_be_sent(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ServerError, match=r"^http.*: found an environment in which no connection can be made"):
        ChatServer(ServerSettings("https://example.invalid/v1"))


def test_a_key_that_cannot_be_sent_is_not_repeated():
    for key in ("secret-\nword", "geheimes-w\u00f6rtchen"):
        with pytest.raises(ServerError, match="environment variable K: expected a key of one line") as caught:
            ServerSettings("http://localhost:8000/v1", key=key, key_variable="K")
        assert key[:6] not in str(caught.value)


def test_a_key_that_the_server_repeats_is_not_shown(caplog):
    key = "very-secret-key-of-mine"
    sent = json.dumps({"error": {"message": f"no such user: {key}"}}).encode()
    with FaultyChatServer(lambda number, body: sent) as faulty:
        with pytest.raises(ServerError, match="no such user") as caught:
            server_at(faulty, key=key, retries=1).answers([request_of(0)])
        assert key not in str(caught.value) + caplog.text


KILLED = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
sys.path.insert(0, "tests/models/served")
from test_server import *
attempts.FIRST_PAUSE = 0.01
server = ChatServer(ServerSettings(sys.argv[1], concurrency=2), sys.argv[2])
server.answers([request_of(number) for number in range(12)])
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on(kind, tmp_path):
    """At most what was under way is asked for again."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}"}
    with FaultyChatServer(lambda number, body: "500" if number % 5 == 3 else None, delay=0.1) as faulty:
        command = [sys.executable, "-c", KILLED, faulty.address, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        while len(faulty.bodies) < 7:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(kind)
        assert process.wait(20) != 0
        time.sleep(0.2)
        answered = len(faulty.answered)
        stored = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
        assert answered - 2 <= len(stored) <= answered
        with next(tmp_path.iterdir()).open("a") as file:
            file.write('{"key": "torn')
        server = server_at(faulty, tmp_path)
        assert texts(server.answers([request_of(number) for number in range(12)])) == [
            expected(number) for number in range(12)
        ]
        assert server.counts["cached"] == len(stored)
        assert len(faulty.answered) <= 12 + 2
        last = server_at(faulty, tmp_path)
        last.answers([request_of(number) for number in range(12)])
        assert last.counts["cached"] == 12


def test_two_runs_share_a_folder(tmp_path):
    with FaultyChatServer() as faulty:
        one, two = server_at(faulty, tmp_path), server_at(faulty, tmp_path)
        one.answers([request_of(0)])
        two.answers([request_of(1)])
        assert len(list(Path(tmp_path).iterdir())) == 2
        three = server_at(faulty, tmp_path)
        three.answers([request_of(0), request_of(1)])
        assert three.counts["cached"] == 2


def test_two_runs_at_once_ask_for_nothing_twice(tmp_path):
    with FaultyChatServer() as faulty:
        one, two = server_at(faulty, tmp_path), server_at(faulty, tmp_path)
        for number in range(3):
            one.answers([request_of(2 * number)])
            two.answers([request_of(2 * number), request_of(2 * number + 1)])
        assert texts(one.answers([request_of(number) for number in range(6)])) == [expected(n) for n in range(6)]
        assert len(faulty.bodies) == 6
        with (tmp_path / "served-1.jsonl").open("a") as file:
            file.write("{}\n")
        with pytest.raises(RecordError, match=r"served-1.jsonl:4: not a line of stored"):
            one.answers([request_of(9)])


def test_what_is_asked_again_is_told_once_and_where_it_goes_on(caplog):
    with FaultyChatServer(lambda number, body: "500" if number in (0, 2, 4, 5, 6, 7) else None) as faulty:
        server_at(faulty, concurrency=1).answers([request_of(number) for number in range(3)])
    told = [record.getMessage() for record in caplog.records if record.name.startswith("models.served")]
    assert [line.rpartition(", ")[2] for line in told] == ["retry 1 of at most 6", "retry 4 of at most 6"]
    assert told[0].startswith("server: found HTTP 500: failing with 500; asked again in 0.0 seconds")


def test_requests_that_fail_together_are_told_once(caplog):
    with FaultyChatServer(lambda number, body: "503" if number < 4 else None) as faulty:
        server_at(faulty, concurrency=4).answers([request_of(number) for number in range(4)])
    assert caplog.text.count("asked again") == 1


def test_half_of_a_character_is_written_as_what_it_is(tmp_path):
    with FaultyChatServer(answer=lambda body: ["so \ud83d"]) as faulty:
        assert texts(server_at(faulty, tmp_path).answers([request_of(0)])) == [["so \ufffd"]]


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with FaultyChatServer() as faulty:
        assert texts(server_at(faulty).answers([request_of(0)])) == [expected(0)]
