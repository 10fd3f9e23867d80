"""The tiny local Qwen2-VL: real classes, saved and loaded like any other, the same for the same seed."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from models.tiny import FAMILIES, SPECIAL_TOKENS, build_model, build_tokenizer, main

SMALL = ["--hidden_size", "32", "--vocab_size", "300", "--layers", "1"]


@pytest.fixture(scope="module")
def loaded(tiny_model):
    return AutoModelForImageTextToText.from_pretrained(tiny_model), AutoProcessor.from_pretrained(tiny_model)


def test_model_and_processor_are_of_the_real_classes(loaded):
    assert type(loaded[0]) is Qwen2VLForConditionalGeneration
    assert type(loaded[1]) is Qwen2VLProcessor
    assert type(loaded[1].tokenizer).__name__.startswith("Qwen2Tokenizer")


def test_loaded_weights_equal_those_that_were_made(loaded):
    model, processor = loaded
    made = build_model(processor.tokenizer, hidden_size=32, layers=2, seed=0).state_dict()
    read = model.state_dict()
    assert made.keys() == read.keys()
    assert all(torch.equal(made[name], read[name]) for name in made)


def test_weights_are_safetensors_and_nothing_is_pickled(tiny_model):
    names = {path.name for path in tiny_model.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))}


def test_parameters_are_as_many_as_the_shapes_say(loaded):
    model, processor = loaded
    hidden, words, vision = 32, 400, 64
    attention = 4 * hidden * hidden + 3 * hidden  # with biases for queries, keys and values
    layer = attention + 3 * hidden * 2 * hidden + 2 * hidden
    text = words * hidden + 2 * layer + hidden  # the output layer shares the embedding's weights
    block = 4 * vision * vision + 4 * vision + 2 * 4 * vision * vision + 5 * vision + 4 * vision
    merger = 2 * vision + (4 * vision) ** 2 + 4 * vision + 4 * vision * hidden + hidden
    tower = 3 * 2 * 8 * 8 * vision + 2 * block + merger
    assert len(processor.tokenizer) == words
    assert model.num_parameters() == text + tower


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_texts_and_images(family, tiny_family):
    model = AutoModelForImageTextToText.from_pretrained(tiny_family(family), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tiny_family(family))
    assert model.config.model_type == family
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    seen = []
    for colour in ("red", "blue"):
        inputs = processor(text=[text], images=[[Image.new("RGB", (48, 32), colour)]], return_tensors="pt")
        with torch.no_grad():
            seen.append(model(**inputs).logits)
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    assert model.num_parameters() < 1e6


def _read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_files_and_another_seed_other_weights(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        main(["--output_dir", str(tmp_path / name), "--seed", str(seed), *SMALL])
    first, again, other = (_read(tmp_path / name) for name in "abc")
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_special_tokens_are_one_token_each(loaded):
    tokenizer = loaded[1].tokenizer
    for token in SPECIAL_TOKENS:
        assert len(tokenizer.encode(f"a{token}b", add_special_tokens=False)) == 3
    config = loaded[0].config
    ids = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
    ]
    assert tokenizer.convert_ids_to_tokens(loaded[0].generation_config.eos_token_id) == ["<|im_end|>", "<|endoftext|>"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    "text", ["", "plain", "Ünïcödé – 漢字 🙂\n\ttabs", "<agent><name>a</name></agent>", "\u2028\x85"]
)
def test_any_text_survives_the_tokenizer(loaded, text):
    tokenizer = loaded[1].tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_conversations_are_written_as_qwen_has_them(loaded):
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert loaded[1].apply_chat_template(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert loaded[1].apply_chat_template(system) == expected


@pytest.mark.parametrize(
    ("size", "visual_tokens"), [((64, 64), 16), ((640, 640), 16), ((32, 48), 6), ((8, 8), 1), ((128, 32), 16)]
)
def test_an_image_takes_a_token_for_16_pixels_squared(loaded, size, visual_tokens):
    model, processor = loaded
    inputs = processor(text=["<|image_pad|>"], images=[Image.new("RGB", size)], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == visual_tokens
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).logits).all()


def test_a_corpus_makes_its_texts_shorter(tmp_path):
    report = "Zebras outnumber quokkas; wombats abstain."
    (tmp_path / "corpus.jsonl").write_text((json.dumps({"report": report}) + "\n\n") * 3)
    lengths = {}
    for name, options in {"without": [], "with": ["--corpus", str(tmp_path / "corpus.jsonl")]}.items():
        main(["--output_dir", str(tmp_path / name), "--hidden_size", "32", "--vocab_size", "500", *options])
        tokenizer = AutoProcessor.from_pretrained(tmp_path / name).tokenizer
        lengths[name] = len(tokenizer.encode(report))
        assert len(tokenizer) == 500
    assert lengths["with"] < lengths["without"] / 2


def test_lines_of_a_corpus_end_at_line_feeds_only(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        json.dumps({"report": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8"
    )
    main(["--output_dir", str(tmp_path / "out"), "--corpus", str(tmp_path / "corpus.jsonl"), *SMALL])
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden_size", "48"], "--hidden_size: expected a multiple of 32, found 48"),
        (["--hidden_size", "0"], "--hidden_size: expected a multiple of 32, found 0"),
        (["--vocab_size", "263"], "--vocab_size: expected at least 264 (bytes and special tokens), found 263"),
        (["--layers", "0"], "--layers: expected at least 1, found 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["--output_dir", str(tmp_path / "out"), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file"),
        ("bytes.txt", b"\xff\xfe", "'utf-8' codec can't decode"),
        ("rows.jsonl", b'{"a": "b"}\n{broken', "line 2: Expecting property name"),
    ],
)
def test_an_unreadable_corpus_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=f"^error: --corpus {tmp_path / name}: {message}"):
        main(["--output_dir", str(tmp_path / "out"), "--corpus", str(tmp_path / name), *SMALL])
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_trained_twice_is_the_same():
    texts = ["some words", "and some more words", "words"]
    first, again = build_tokenizer(texts, 300), build_tokenizer(texts, 300)
    assert first.get_vocab() == again.get_vocab()
    assert first.encode("some more words") == again.encode("some more words")
