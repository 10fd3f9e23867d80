"""Real vLLM on a CPU, in this process: `make test-vllm`. An engine takes a minute to start, so trainers share them."""

import importlib.util
import json
import os
import socket

import pytest

ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every engine of the machine would sit on its first core
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What vLLM reads."""
BY_TRL = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")


def pytest_collection_modifyitems(items):
    here = [item for item in items if item.path.is_relative_to(os.path.dirname(__file__))]
    for item in here:
        item.add_marker(pytest.mark.vllm)


def pytest_runtest_setup():
    """Whoever asks for these tests where they cannot run is told, and does not take them for passed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.fail("vLLM is not in this environment: make test-vllm", pytrace=False)


@pytest.fixture
def vllm_on_cpu(monkeypatch):
    """What TRL sets for its engine is gone after the test, so that no server takes it for its own."""
    for name in (*ON_CPU, *BY_TRL):
        monkeypatch.setenv(name, ON_CPU.get(name, ""))
    for name in BY_TRL:
        del os.environ[name]
    with socket.socket() as found:  # TRL tries 29500 first, as every run on the machine does
        found.bind(("localhost", 0))
        os.environ["MASTER_PORT"] = str(found.getsockname()[1])


@pytest.fixture(scope="session")
def engines():
    """The engines of this process, by their options."""
    return {}


@pytest.fixture
def shared_engines(vllm_on_cpu, engines, monkeypatch):
    """Trainers whose engines would be equal share one; each sends its weights before it samples."""
    from vllm.utils.torch_utils import set_random_seed

    from trainers.vllm_engine import rollouts

    engine_class = rollouts.engine_class
    apart = ("model", "max_num_seqs", "seed")

    def shared(processor):
        def engine(**options):
            key = json.dumps({name: options[name] for name in options if name not in apart}, sort_keys=True)
            if key not in engines:
                engines[key] = engine_class(processor)(**options)
            set_random_seed(options["seed"])  # as an engine does that starts
            return engines[key]

        return engine

    monkeypatch.setattr(rollouts, "engine_class", shared)


@pytest.fixture(scope="session")
def literate_model(tiny_model, tmp_path_factory):
    """Folder of the tiny model, which expects pictures in completions as little as one that has read text."""
    import torch
    from transformers import AutoModelForImageTextToText

    from models.families.loading import image_token_ids, load_processor

    processor = load_processor(str(tiny_model))
    pictures = image_token_ids(processor)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    texts = torch.arange(model.config.text_config.vocab_size)
    texts = texts[~torch.isin(texts, torch.tensor(pictures))]
    share = 1.0
    while share > 3e-5:
        tokens = texts[torch.randint(len(texts), (8, 48))]
        shares = model(input_ids=tokens).logits.softmax(-1)[..., pictures].sum(-1)
        share = shares.max().item()
        optimizer.zero_grad()
        (-torch.log1p(-shares)).mean().backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("model") / "literate"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
