"""An address in the place of a model: commands make the same of it as of a model that is loaded."""

import json
from collections import Counter

import pytest
from chat_server import FAULTS, FaultyChatServer, content_of, picture_of
from command_lines import with_options
from PIL import Image

from data.errors import UserError
from data.io.pixel_bounds import BoundsError, PixelBounds
from data.io.records import read_rows
from models.served import attempts
from models.served.address import checked_address, is_server, is_this_machine
from models.served.arguments import ServerArguments
from models.served.server import ChatServer, ServerSettings
from models.served.vlm import ServedVLM
from models.vlm import Prompt, Sampling
from rewards import eval as rewards_eval
from rollouts import beams, completions, filter_dataset

SELECTION = "<selection><reasoning>Soft.</reasoning><agents></agents></selection>"


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch):
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 0.01)


def some_faults(number: int, body: dict) -> str | None:
    """A fifth of all attempts fail, each in another way."""
    kinds = [fault for fault in FAULTS if fault != "timeout"]
    return kinds[number // 5 % len(kinds)] if number % 5 == 4 else None


def asked(text: str, *images, name: str = "a") -> Prompt:
    return Prompt([{"role": "user", "content": text}], images, name)


def vlm_at(server: FaultyChatServer, *bounds: int | None) -> ServedVLM:
    return ServedVLM(ChatServer(ServerSettings(server.address, concurrency=4)), *bounds)


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(None, None), (None, 784 * 4), (784 * 20, 784 * 30)])
def test_images_have_the_size_that_a_model_here_would_see(bounds):
    picture = Image.new("RGB", (200, 100), "teal")
    with FaultyChatServer() as server:
        vlm_at(server, *bounds).complete([asked("what is it?", picture)], Sampling())
        part, text = server.bodies[0]["messages"][0]["content"]
        low, high = bounds
        size = picture.size if high is None else PixelBounds(low or 0, high).size(picture.size)
        assert picture_of(part).size == size
        assert text == {"type": "text", "text": "what is it?"}


def test_the_processor_of_a_served_folder_says_how_images_are_resized(tiny_model):
    with FaultyChatServer(root=str(tiny_model)) as server:
        vlm = vlm_at(server, None, 32 * 32)
        assert vlm.reader(48 * 48).size((90, 90)) == (48, 48)
        vlm.complete([asked("?", Image.new("RGB", (90, 90)))], Sampling())
        assert picture_of(server.bodies[0]["messages"][0]["content"][0]).size == (32, 32)


def test_names_and_seed_decide_what_is_sampled_from_the_whole_distribution():
    with FaultyChatServer(owner="vllm") as server:
        vlm = vlm_at(server, 784, 78400)
        prompts = [asked("?", name="a"), asked("?", name="b")]
        for seed in (0, 1):
            vlm.complete(prompts, Sampling(12, 3, 0.7, seed))
        assert len({body["seed"] for body in server.bodies}) == 4
        body = server.bodies[0]
        sampling = {"n": 3, "max_tokens": 12, "temperature": 0.7, "top_p": 1.0}
        sampling |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        assert {name: body[name] for name in sampling} == sampling
        assert "<|image_pad|>" in body["bad_words"]
        assert body["mm_processor_kwargs"] == {"min_pixels": 784, "max_pixels": 78400}
        vlm.complete(prompts[:1], Sampling())
        assert "repetition_penalty" not in server.bodies[-1], "greedy answers are those of the model's own settings"


def test_another_kind_of_server_is_told_nothing_that_it_may_not_know():
    with FaultyChatServer() as server:
        vlm_at(server, 784, 78400).complete([asked("?")], Sampling(temperature=1.0))
        known = {"model", "messages", "n", "max_tokens", "temperature", "top_p", "seed"}
        assert set(server.bodies[0]) == known


def test_the_name_of_a_model_says_how_images_are_resized(capsys):
    """Sides of whole 28 pixels for Qwen2-VL and what is not known, 32 for Qwen3-VL."""
    picture = Image.new("RGB", (200, 100), "teal")
    roots = {"Qwen/Qwen2.5-VL-3B-Instruct-AWQ": (196, 84), "org/qwen3-vl-4b-tuned": (192, 96), "x/policy": (196, 84)}
    for root, size in roots.items():
        with FaultyChatServer(root=root) as server:
            vlm = vlm_at(server, None, 20_000)
            vlm.complete([asked("?", picture)], Sampling())
            assert picture_of(server.bodies[0]["messages"][0]["content"][0]).size == size
            assert vlm.reader(20_000).open(picture).size == size
            said = capsys.readouterr().err
            assert said.count("does not say what kind of model") == (1 if root == "x/policy" else 0)


def test_families_with_rules_of_their_own_take_no_bounds_and_are_shown_smaller_images_where_asked():
    with FaultyChatServer(root="google/gemma-3-4b-it") as server:
        with pytest.raises(BoundsError, match="max_pixels: .* resizes images by rules of its own; leave it out"):
            vlm_at(server, None, 20_000)
        vlm = vlm_at(server)
        assert vlm.reader(20_000).open(Image.new("RGB", (400, 200))).size == (200, 100)
        assert vlm.reader(20_000).open(Image.new("RGB", (30, 20))).size == (30, 20)


# -- commands ---------------------------------------------------------------------------------------------------------


def command(report_data, server, output, *more) -> list[str]:
    words = ["--dataset_name", report_data, "--model", server.address, "--output", output, "--num_completions", 3]
    words += ["--rewards", "strict_xml_format", "--concurrency", 3, "--max_retries", 9, "--batch_size", 4]
    return with_options(words, more)


def candidates(path) -> list[list[str]]:
    return [[one["completion"] for one in row["candidates"]] for _, row in read_rows(path)]


def test_completions_of_a_faulty_server_are_those_of_a_sound_one(report_data, tmp_path):
    with FaultyChatServer() as server:
        completions.main(command(report_data, server, tmp_path / "sound.jsonl"))
        asked = len(server.bodies)
    with FaultyChatServer(some_faults) as server:
        completions.main(command(report_data, server, tmp_path / "faulty.jsonl"))
        failed = len(server.bodies) // 5
        assert failed > 2
        assert len(server.bodies) == asked + failed
        assert Counter(map(content_of, server.answered)).most_common(1)[0][1] == 1
        assert server.most_at_once <= 3
    assert candidates(tmp_path / "faulty.jsonl") == candidates(tmp_path / "sound.jsonl")
    assert len(candidates(tmp_path / "sound.jsonl")) == asked == 24


def test_completions_go_on_where_the_server_gave_up(report_data, tmp_path):
    output = tmp_path / "groups.jsonl"
    with FaultyChatServer(lambda number, body: "500" if number >= 10 else None) as server:
        found = error_of(completions.main, *command(report_data, server, output, "--max_retries", 1))
        assert "HTTP 500" in found
        assert "expected 3 whole completions. What was answered is kept in" in found
    with FaultyChatServer() as server:  # at another port
        completions.main(command(report_data, server, output))
        assert len(server.bodies) == 14
        assert len(candidates(output)) == 24
        completions.main(command(report_data, server, output))
        assert len(server.bodies) == 14
        completions.main(command(report_data, server, output, "--restart"))
        assert len(server.bodies) == 14 + 24, "answers of the work that was discarded were taken"


def test_evaluation_scores_what_the_server_answers(report_data, tmp_path):
    arguments = ["--dataset_name", str(report_data), "--split", "test", "--rewards", "strict_xml_format"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    with FaultyChatServer(answer=lambda body: [SELECTION] * body["n"]) as server:
        server.faults = lambda number, body: "HTTP 400" if number == 2 else None
        with pytest.raises(SystemExit, match="HTTP 400"):
            rewards_eval.main([*arguments, "--model", server.address, "--concurrency", "1"])
        rewards_eval.main([*arguments, "--model", server.address])
        assert len(server.bodies) == 5  # 4 rows, of which one was refused once
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rewards"]["strict_xml_format"]["mean"] == 1.0
    assert not (tmp_path / "out" / "server_answers").exists()


def test_answers_are_shared_between_runs_where_that_is_asked_for(report_data, tmp_path):
    arguments = ["--dataset_name", str(report_data), "--split", "test", "--rewards", "strict_xml_format"]
    arguments += ["--answer_cache", str(tmp_path / "answers")]
    with FaultyChatServer() as server:
        for name in ("one", "two"):
            rewards_eval.main([*arguments, "--model", server.address, "--output_dir", str(tmp_path / name)])
        assert len(server.bodies) == 4


def test_reports_are_read_by_a_server(report_data, tmp_path):
    arguments = ["--dataset_name", str(report_data), "--output", str(tmp_path / "kept.jsonl")]
    with FaultyChatServer(some_faults, answer=lambda body: [SELECTION]) as server:
        filter_dataset.main([*arguments, "--model", server.address])
    assert [row["removed"] for _, row in read_rows(tmp_path / "kept.jsonl")] == [[]] * 4


# -- what is wrong is said before anything is read --------------------------------------------------------------------


def error_of(main, *arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return str(ended.value.code)


def test_a_refused_address_is_said_before_the_data_is_read(tmp_path):
    with FaultyChatServer() as server:
        address = server.address
    words = ["--dataset_name", "nowhere.jsonl", "--model", address]
    rewards, output = ["--rewards", "xml_format"], ["--output", tmp_path / "o.jsonl"]
    commands = {
        completions.main: [*rewards, *output],
        filter_dataset.main: output,
        rewards_eval.main: [*rewards, "--output_dir", tmp_path],
    }
    for main, more in commands.items():
        assert error_of(main, *words, *more).startswith(f"error: {address}/models: found connect error")


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://localhost:8000", "the path is missing, which is /v1 for most servers"),
        ("localhost:8000/v1", "an address begins with http:// or https://"),
        ("http://localhost:8000/v1/chat/completions", "leave out /chat/completions"),
        ("http://me:secret-word@localhost:8000/v1", "found a login before the '@'"),
        ("http://localhost:8000/v1?api_key=secret-word", "found more after it, from ? on"),
        ("grpc://localhost:8000/v1", "expected http://host:port/v1, found 'grpc://localhost:8000/v1'"),
        ("http://localhost:port/v1", "expected http://host:port/v1, found 'http://localhost:port/v1'"),
        ("http:///v1", "expected http://host:port/v1, found 'http:///v1'"),
        ("http:/localhost:8000/v1", "expected http://host:port/v1, found 'http:/localhost:8000/v1'"),
        ("http://[::1:8000/v1", "expected http://host:port/v1, found 'http://[::1:8000/v1'"),
        ("http://my host:8000/v1", "expected http://host:port/v1, found 'http://my host:8000/v1'"),
        ("http://localhost:8000/v 1", "expected http://host:port/v1, found 'http://localhost:8000/v 1'"),
        ("http://me:secret-word#1@localhost:8000/v1", "found a login before the '@'"),
    ],
)
def test_no_address_of_a_server(address, problem, tmp_path):
    found = error_of(completions.main, "--dataset_name", "a", "--model", address, "--output", tmp_path / "o.jsonl")
    assert problem in found
    assert "--model" in found
    assert "secret-word" not in found


def test_what_is_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_server, ("host:8000", "http://[::1]:8000/v1", "run:3", "[::1]:8000/v1", " http://a/v1")))
    assert not is_server("owner/name")
    (tmp_path / "run:3").mkdir()
    assert not is_server("run:3")
    assert checked_address("HTTP://[::1]:8000/v1/") == "http://[::1]:8000/v1"
    assert checked_address(" http://localhost:8000/v1\n") == "http://localhost:8000/v1"
    for host in ("[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost."):
        assert is_this_machine(f"http://{host}:8000/v1")
    assert not is_this_machine("http://example.com/v1")


def test_commands_that_need_the_model_itself_say_so():
    found = error_of(
        beams.main,
        *("--pools", "p.jsonl", "--dataset_name", "e", "--output", "o.jsonl", "--model", "http://localhost:8000/v1"),
    )
    assert found == (
        "error: --model: expected a folder or an id of the Hub, because the model itself is needed here; "
        "found the address of a server"
    )


def test_options_that_are_of_no_use(tiny_model, tmp_path):
    words = ["--dataset_name", "a", "--output", tmp_path / "o.jsonl", "--rewards", "xml_format", "--model"]
    found = error_of(completions.main, *words, tiny_model, "--served_model_name", "x")
    assert found == "error: --served_model_name: is for a server; expected an address in --model, http://host:port/v1"
    for name in ("--concurrency", "--max_retries", "--request_timeout", "--answer_cache", "--key_variable"):
        assert error_of(completions.main, *words, tiny_model, name, "3").startswith(f"error: {name}: is for a server")
    given = ["--dataset_name", "a", "--output_dir", tmp_path, "--rewards", "xml_format"]
    assert error_of(rewards_eval.main, *given, "--key_variable", "A").startswith("error: --key_variable: is for a")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        found = error_of(completions.main, *words, "http://localhost:8000/v1", "--answer_cache", place)
        assert found == f"error: --answer_cache: expected a folder, found that {tmp_path / 'file'} is a file"
    found = error_of(completions.main, *words, "http://localhost:8000/v1", "--device", "cpu")
    assert found == "error: --device: is for a model that is loaded here; a server has its own"


def test_the_name_of_the_model(tmp_path):
    words = ["--dataset_name", "a", "--output", tmp_path / "o.jsonl", "--rewards", "xml_format", "--model"]
    with FaultyChatServer(models=("base", "policy")) as server:
        found = error_of(completions.main, *words, server.address)
        assert found.endswith("expected one model, or its name in --served_model_name; the server has base, policy")
        found = error_of(completions.main, *words, server.address, "--served_model_name", "polcy")
        assert found.endswith("found no model 'polcy'; did you mean 'policy'? the server has base, policy")


def test_the_key_comes_from_a_variable_alone(report_data, tmp_path, monkeypatch, capfd):
    key = "the-key-that-opens-it"
    words = ["--dataset_name", report_data, "--output", tmp_path / "o.jsonl", "--rewards", "xml_format", "--model"]
    with FaultyChatServer(key=key) as server:
        found = error_of(completions.main, *words, server.address)
        assert found.endswith("The key is read from the environment variable VLLM_API_KEY, which is not set")
        found = error_of(completions.main, *words, server.address, "--key_variable", key)
        assert "never the key itself" in found
        assert key not in found
        monkeypatch.setenv("OF_MY_SERVER", f"{key}\n")
        completions.main([*map(str, words), server.address, "--key_variable", "OF_MY_SERVER"])
        assert set(server.keys) == {None, f"Bearer {key}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert len(files) > 2
    assert all(key not in path.read_text() for path in files)
    assert key not in "".join(capfd.readouterr())


def test_a_key_that_no_header_can_hold_is_not_repeated(monkeypatch):
    monkeypatch.setenv("OF_MY_SERVER", "schlüssel\nwort")
    with pytest.raises(UserError, match="environment variable OF_MY_SERVER: expected a key of one line") as caught:
        ServerArguments(key_variable="OF_MY_SERVER").server_settings("http://localhost:8000/v1")
    assert "wort" not in str(caught.value)
