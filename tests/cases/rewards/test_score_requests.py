"""`model.score(prompts, images, responses)`: scored as what they are, or an error that says what is expected."""

import pytest
from PIL import Image

from models.reward.inputs import read_requests

PLACE = {"type": "image"}


def user(*content):
    return [{"role": "user", "content": list(content)}]


@pytest.mark.parametrize(
    "response",
    [
        "red",
        [{"role": "assistant", "content": "red"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "text", "text": "red"}]}],
    ],
)
def test_p02_chat_responses_are_their_texts(response):
    assert read_requests(["what?"], None, [response])[2] == ["red"]


def test_p02_responses_with_images_are_their_parts():
    parts = [{"type": "text", "text": "Here:"}, {"type": "image", "image": "a.png"}]
    for response in (parts, [{"role": "assistant", "content": parts}]):
        assert read_requests(["draw"], None, [response])[2] == [parts]
    with pytest.raises(ValueError, match=r"responses\[0\]: 0.image: expected the image itself in its part"):
        read_requests(["draw"], None, [[PLACE]])


@pytest.mark.parametrize("image", ["a.png", b"x", {"bytes": b"x", "path": None}, Image.new("RGB", (9, 9))])
def test_p02_one_image_a_prompt_is_a_list_of_one(image):
    assert read_requests(["what?"], [image], ["red"])[1] == [[image]]
    assert read_requests(["what?"], [[image]], ["red"])[1] == [[image]]


def test_p02_images_in_parts_are_the_images():
    prompt = user({"type": "image", "image": "a.png", "text": None}, {"type": "text", "text": "what?"})
    asked, seen, _ = read_requests([prompt], None, ["red"])
    assert (asked, seen) == ([user(PLACE, {"type": "text", "text": "what?"})], [["a.png"]])


@pytest.mark.parametrize(
    ("prompts", "images", "responses", "problem"),
    [
        ("what?", None, ["a"], "prompts: expected a list, one entry a response, found str"),
        (["what?"], None, "a", "responses: expected a list"),
        (["what?"], "a.png", ["a"], "images: expected a list"),
        (["what?"], None, [["a", "b"]], r"responses\[0\]: expected a text, parts, or chat messages that end"),
        (["what?"], None, [None], r"responses\[0\]: expected a text"),
        (["what?"], None, [[]], r"responses\[0\]: expected a text"),
        ([{"role": "user", "content": "x"}], None, ["a"], r"prompts\[0\]: expected a question or a list of chat"),
        ([["what?"]], None, ["a"], r"prompts\[0\]: expected a question or a list of chat messages"),
        ([5], None, ["a"], r"prompts\[0\]: expected a question"),
        (["what?"], [[5]], ["a"], r"images\[0\]: expected paths, bytes or images, found int"),
    ],
)
def test_p02_another_type_says_what_is_expected(prompts, images, responses, problem):
    with pytest.raises(TypeError, match=problem):
        read_requests(prompts, images, responses)


@pytest.mark.parametrize(
    ("prompt", "images", "problem"),
    [
        (user(PLACE), None, r"prompts\[0\]: images: expected as many as the messages have places \(1\), found 0"),
        (user({"type": "video"}), None, r"prompts\[0\]: 0.content.0.type: expected parts of type text or image"),
        ("<image> <image>", ["a.png"], r"prompts\[0\]: prompt: <image> in a text marks the place"),
    ],
)
def test_p02_a_prompt_that_cannot_be_used_is_named(prompt, images, problem):
    with pytest.raises(ValueError, match=problem):
        read_requests([prompt], None if images is None else [images], ["a"])
