"""A real `vllm serve` on a CPU: what it answers is what the same model answers when it is loaded here."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
import torch
from PIL import Image
from vlm_cases import COLOURS, build_qwen2, picture, records

from data.prompts import IN_CONTEXT_SYSTEM_PROMPT
from models.families.qwen_vl import QwenVL
from models.generation import prepare_inputs, with_image_blocks, yes_or_no
from models.served.errors import ServerError
from models.served.requests import TOP_TOKENS, ChatRequest
from models.served.server import ChatServer, ServerSettings
from models.served.vlm import ServedVLM
from models.vlm import LocalVLM, Prompt, Sampling
from rollouts import completions
from rollouts.frozen_vlm.engine import InContextVLM
from rollouts.frozen_vlm.requests import InContextRequest
from rollouts.frozen_vlm.served import ServedInContextVLM

pytestmark = pytest.mark.timeout(1_200)
SECONDS_TO_START = 1_000
"""At most: a minute where nothing else is running."""
BROKEN = "\ufffd"
"""What a model here writes for a character that is cut in its middle; vLLM leaves it out at the end."""


@pytest.fixture(scope="module")
def served_model(tmp_path_factory) -> Path:
    model, processor = build_qwen2()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    folder = tmp_path_factory.mktemp("served") / "tiny"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def address(served_model):
    """Of a server with the model, in float32."""
    port = _free_port()
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(served_model)]
    words += ["--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    words += [
        "--max-model-len",
        "1024",
        "--enforce-eager",
        "--skip-mm-profiling",
        "--distributed-executor-backend",
        "uni",
    ]
    words += ["--limit-mm-per-prompt", '{"image": 6, "video": 0}']
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    settings["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # which engines in this process leave out
    log = served_model.with_name("log")
    with log.open("w") as file:
        process = subprocess.Popen(
            words, env={**os.environ, **settings}, stdout=file, stderr=file, start_new_session=True
        )
    found = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(SECONDS_TO_START):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                ChatServer(ServerSettings(found))
                break
            except ServerError:
                time.sleep(1)
        yield found
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def served(address):
    """Function: bounds -> the model at the server."""
    return lambda *bounds: ServedVLM(ChatServer(ServerSettings(address, concurrency=4)), *bounds)


def prompts() -> list[Prompt]:
    """With none, one and two images of several sizes."""
    sizes = ((64, 64), (96, 32), (32, 64), (48, 48), (200, 130), (17, 40))
    asked = []
    for number, colour in enumerate(COLOURS):
        pictures = [picture(colour, sizes[number % len(sizes)]), picture(COLOURS[0])][: number % 3]
        messages = [{"role": "system", "content": "Look."}, {"role": "user", "content": f"what is shape {number}?"}]
        asked.append(Prompt(messages, pictures, number))
    return asked


@pytest.mark.parametrize("bounds", [(None, None), (256, 2048), (256, 8192)])
def test_greedy_answers_are_those_of_the_model_loaded_here(served, served_model, bounds):
    """The last bounds are wider than the server's own."""
    found = served(*bounds).complete(prompts(), Sampling(16))
    expected = LocalVLM.from_name(str(served_model), *bounds, device="cpu").complete(prompts(), Sampling(16))
    assert len({text for [text] in expected}) > 4
    assert [text.rstrip(BROKEN) for [text] in found] == [text.rstrip(BROKEN) for [text] in expected]


def test_the_image_decides(served):
    pictures = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 64), "red")]
    messages = [{"role": "user", "content": "what is it?"}]
    found = served().complete([Prompt(messages, [one], 0) for one in pictures], Sampling(16))
    assert found[0] != found[1]


def test_answers_with_examples_are_those_of_the_model_loaded_here(served, served_model):
    shown = records()
    requests = [InContextRequest(shown[number], (shown[number - 1], shown[number - 2])) for number in range(8)]
    expected = InContextVLM.load(str(served_model), device="cpu").generate(requests, max_new_tokens=8)
    found = ServedInContextVLM(served(), "chat", IN_CONTEXT_SYSTEM_PROMPT).generate(requests, 8)
    assert len(set(expected)) > 3
    assert [text.rstrip(BROKEN) for text in found] == [text.rstrip(BROKEN) for text in expected]


def test_first_tokens_have_the_log_probabilities_of_the_model_loaded_here(address, served_model):
    """By which the judge decides."""
    image, conversation = picture("teal"), yes_or_no("Is it teal?")
    request = ChatRequest(with_image_blocks(conversation, [image]), [image], max_new_tokens=1, first_tokens=True)
    [[completion]] = ChatServer(ServerSettings(address)).answers([request])
    vlm = LocalVLM.from_name(str(served_model), device="cpu")
    with torch.no_grad():
        logits = vlm.model(**prepare_inputs(vlm.processor, [conversation], [[image]])).logits[0, -1]
    expected = logits.log_softmax(-1).topk(TOP_TOKENS).values.tolist()
    assert sorted((value for _, value in completion.first_tokens), reverse=True) == pytest.approx(expected, abs=1e-4)


def test_samples_are_repeated_by_seed_and_name(served):
    def sample(seed: int, name: str) -> list[str]:
        [found] = served().complete(
            [Prompt(prompts()[1].messages, prompts()[1].images, name)], Sampling(12, 4, 1.0, seed)
        )
        return found

    assert len(set(sample(0, "a"))) > 1
    assert sample(0, "a") == sample(0, "a")
    assert sample(1, "a") != sample(0, "a") != sample(0, "b")


def test_vision_tokens_are_never_written(address):
    """They would be, and only asking for special tokens shows it."""
    conversation = [{"role": "user", "content": "what is it?"}]
    request = ChatRequest(
        conversation, num_generations=8, max_new_tokens=100, temperature=2.0, without=QwenVL.image_tokens
    )
    body = {**request.settings("policy", "vllm"), "messages": conversation, "skip_special_tokens": False}
    written = []
    for ruled_out in (body["bad_words"], []):
        answer = httpx2.post(f"{address}/chat/completions", json={**body, "bad_words": ruled_out}, timeout=300).json()
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        written.append(sum(text.count(token) for text in texts for token in QwenVL.image_tokens))
    assert written[0] == 0 < written[1]


def test_what_the_server_refuses_is_told(address):
    long = [{"role": "user", "content": "word " * 3000}]
    with pytest.raises(ServerError, match="HTTP 400: .*1024"):
        ServedVLM(ChatServer(ServerSettings(address))).complete([Prompt(long, [], 0)], Sampling(16))
    with pytest.raises(ServerError, match="found no model 'other'; the server has policy"):
        ChatServer(ServerSettings(address, model="other"))


def test_completions_of_a_data_set(address, report_data, tmp_path):
    words = ["--dataset_name", report_data, "--model", address, "--output", tmp_path / "groups.jsonl", "--limit", 6]
    words += ["--rewards", "strict_xml_format", "--num_completions", 3, "--max_new_tokens", 8]
    completions.main([*map(str, words)])
    first = (tmp_path / "groups.jsonl").read_bytes()
    assert first.count(b"\n") == 6
    completions.main([*map(str, words), "--restart"])
    assert (tmp_path / "groups.jsonl").read_bytes() == first
