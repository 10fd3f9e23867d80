"""Filtering agents: words in any script, items that they have nothing to judge of, the best of several copies."""

import itertools
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from skimage import data as photographs

from data.quality_reports import write_report
from data.reports.aspects import TEXT_LENGTH, remarkable_ids
from data.reports.damage import DAMAGES, Draft
from data.reports.measurements import measure_pool
from data.reports.pool import Item, Pool
from data.rows.words import count_words, find_words, first_words
from filter_agents.executor import Executor
from filter_agents.registry import DEFAULT_AGENTS, build_agents
from rewards.formats.sentence_format import SentenceFormat
from rewards.relevance import relevance
from rollouts import filter_dataset
from rollouts.factor_routing import run_routes

PHOTO = Image.fromarray(photographs.astronaut()).crop((130, 20, 386, 276))


def _pool(folder, pictures: list[Image.Image], fields: list[dict] | None = None) -> str:
    folder.mkdir(exist_ok=True)
    items = []
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
        items.append(Item(id=number, image=f"{number}.png", **(fields[number] if fields else {})))
    Pool(folder, items).save_items()
    return str(folder)


def _kept(pool: str, *names: str, **prompts: str) -> list[int]:
    return Executor(build_agents(names)).run(pool, {name: prompts.get(name, "") for name in names}).kept


def _crops(count: int) -> list[Image.Image]:
    """Pictures that are no copies of one another."""
    left = [60 * number for number in range(count)]
    return [Image.fromarray(photographs.astronaut()).crop((x % 400, x // 8, x % 400 + 96, x // 8 + 96)) for x in left]


# -- N3: lengths in any script ---------------------------------------------------------------------------------------

QUESTIONS = {
    "English": "What color is the car?",
    "Chinese": "这辆车是什么颜色？",
    "short Chinese": "这是什么？",
    "Japanese": "この車は何色ですか？",
    "Katakana": "カメラはどこにありますか？",
    "Thai": "รถคันนี้สีอะไร",
    "Lao": "ລົດຄັນນີ້ສີຫຍັງ",
    "Khmer": "ឡាននេះពណ៌អ្វី",
    "Burmese": "ဒီကားက ဘာအရောင်လဲ",
    "Korean": "이것은 무엇입니까?",
    "Arabic": "ما لون هذه السيارة؟",
    "Hindi": "यह कार किस रंग की है?",
    "Hebrew": "מה צבע המכונית?",
    "Russian": "Какого цвета машина?",
    "Amharic": "መኪናው ምን ዓይነት ቀለም ነው?",
    "Tibetan": "རླངས་འཁོར་འདི་ཚོན་མདོག་ག་རེ་རེད།",
    "Javanese": "ꦩꦺꦴꦧꦶꦭ꧀ꦲꦶꦏꦶꦮꦂꦤꦤꦺꦲꦥ",
    "Amharic with dividers": "መኪናው፡ምን፡ዓይነት፡ቀለም፡ነው።",
    "Chinese with Latin": "这是iPhone吗？",
    "long Thai": "ผู้ชายที่ยืนอยู่ทางด้านซ้ายของภาพกำลังถืออะไรอยู่ในมือข้างขวาของเขา",
    "long Chinese": "站在图片左边的那个穿着红色衣服的男人右手里拿着的是什么东西？",
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_n3_a_question_in_any_script_is_kept(question, tmp_path):
    assert _kept(_pool(tmp_path, _crops(1), [{"question": question}]), "text_length_filter") == [0]


@pytest.mark.parametrize(
    "question", ["什么", "何？", "ใคร", "뭐?", "Who?", "من؟", "字" * 41, "สีอะไร" * 60, "word " * 41]
)
def test_n3_what_is_cut_or_bloated_is_removed_in_any_script(question, tmp_path):
    pool = _pool(tmp_path, _crops(2), [{"question": question}, {"question": QUESTIONS["Chinese"]}])
    assert _kept(pool, "text_length_filter") == [1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("这辆车是什么颜色？", 8),
        ("カメラはどこ", 4),  # a run of Katakana, and three signs
        ("รถคันนี้สีอะไร", 4),  # 14 letters
        ("이것은 무엇입니까?", 5),
        ("这是 iPhone 15 吗？", 5),
        ("这是iPhone15吗？", 4),
        ("don't blue-green , 3.5", 4),
        ("🙂🙂 🙂", 2),
        ("བོད་ཡིག་གི་ཡི་གེ།", 5),  # a word between each two marks
        ("ꦧꦱꦗꦮ", 2),  # 4 letters
        ("ᬩᬲᬩᬮᬶ", 2),  # 4 letters, one of them with a sign
        ("መኪናው፡ምን፡ዓይነት", 3),
        ("་།", 0),
        ("这是🙂吗", 3),
        (" \u3000\n", 0),
    ],
)
def test_n3_words_are_counted(text, words):
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("这是一只猫。", 1.0),
        ("यह कार लाल है।", 1.0),
        ("هل هذه قطة؟", 1.0),
        ("نہیں ہے۔", 1.0),
        ("መኪናው ቀይ ነው።", 1.0),
        ("རླངས་འཁོར་འདི་དམར་པོ་རེད།", 1.0),
        ("ეს კატაა.", 1.0),
        ("Τι χρώμα έχει το αυτοκίνητο;", 1.0),
        ("¿De qué color es?", 1.0),
        ("รถคันนี้สีแดง", 1.0),  # Thai has no full stop
        ("Это кот.", 1.0),
        ("это кот.", 0.0),
        ("这是猫。那是狗。", 0.0),
        ("这是一只猫", 0.0),
        ("红。", 0.0),
        ("。", 0.0),
        ("3 cats are red.", 0.0),
        ("字" * 41 + "。", 0.0),
    ],
)
def test_n03_a_sentence_is_one_in_any_script(sentence, expected):
    assert SentenceFormat()([sentence]) == [expected]


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("красный мяч", "красный шар", 1 / 2),
        ("Красный мяч!", "мяч, красный", 1.0),
        ("3 красных мяча", "3 синих куба", 1 / 3),
        ("红球", "红色的球", 2 * 2 / (2 + 4)),
        ("སྤྱང་ཀི", "སྤྱང་ཁུ", 1 / 2),
        ("й", "и\u0306", 1.0),  # one letter, written in two ways
        ("café noir", "caf noir", 1.0),  # as the published figures have it
        ("красный", "red", 0.0),
    ],
)
def test_n03_answers_in_any_script_have_words_in_common(prediction, answer, expected):
    assert relevance(prediction, [answer]).token_f1 == pytest.approx(expected)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_n03_damaged_questions_are_too_short_or_too_long_in_any_script(question, seed):
    draft = Draft(PHOTO, question=question, answers=("red",))
    cut, repeated = (
        DAMAGES[name].apply(draft, random.Random(seed), []).question
        for name in ("cut_questions", "repeated_questions")
    )
    assert 1 <= count_words(cut) <= 2
    assert question.startswith(cut)
    assert 40 < count_words(repeated) <= 40 + 4 * count_words(question)


@given(st.text(max_size=60), st.integers(0, 5))
def test_n03_the_first_words_of_a_text_are_its_beginning(text, number):
    beginning = first_words(text, number)
    assert " ".join(text.split()).startswith(beginning)
    assert count_words(beginning) <= number


@given(st.text(st.characters(max_codepoint=0x24F)), st.integers(0, 5))
def test_n03_the_first_words_of_scripts_with_spaces_stand_between_them(text, number):
    assert first_words(text, number) == " ".join(text.split()[:number])


@given(st.text(st.characters(max_codepoint=0x7F)))
def test_n03_the_words_of_plain_texts_are_runs_of_letters_and_digits(text):
    assert find_words(text) == re.findall("[A-Za-z0-9]+", text)


@given(st.text(st.characters(max_codepoint=0x24F)))
def test_n3_scripts_with_spaces_are_counted_by_them(text):
    assert count_words(text) == len(text.split())


@given(st.text(max_size=60))
def test_n3_any_text_has_as_many_words_as_its_parts(text):
    assert count_words(text) == sum(map(count_words, text.split()))
    assert (count_words(text) == 0) <= (not any(letter.isalnum() for letter in text))


# -- N4: not applicable means kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text_length_filter", "answer_consistency_filter"])
@pytest.mark.parametrize(
    "prompt", ["", "keep question words at least 5, answer words at least 2", "keep at least 0.9"]
)
def test_n4_items_without_texts_are_kept_by_the_agents_of_texts(name, prompt, tmp_path):
    assert _kept(_pool(tmp_path, _crops(3)), name, **{name: prompt}) == [0, 1, 2]


def test_n4_an_item_without_a_question_stays_among_others(tmp_path):
    fields = [{"question": "Who is that?"}, {}, {"question": "Who?"}, {"question": " ", "answers": ("a",)}]
    pool = _pool(tmp_path, _crops(4), fields)
    assert _kept(pool, "text_length_filter") == [0, 1, 3]
    loaded = Pool(pool)
    measurements = measure_pool(loaded)
    assert remarkable_ids(TEXT_LENGTH, loaded.items, measurements) == [2]
    report = write_report(loaded.items, measurements, ("text_length_filter",), "train", random.Random(1))
    assert "0 words" not in report
    assert "0 to" not in report


def test_n4_a_question_without_answers_is_judged_by_its_words_alone(tmp_path):
    fields = [{"question": "Who is that?"}, {"question": "Who is that?", "answers": ("word " * 30,)}]
    assert _kept(_pool(tmp_path, _crops(2), fields), "text_length_filter") == [0]


def test_n4_items_without_factors_are_kept_by_the_agents_of_factors(tmp_path):
    pool = _pool(tmp_path, [PHOTO.filter(ImageFilter.GaussianBlur(5))] * 2)
    removed_by = run_routes(pool, {0: [], 1: ["soft"]}, {"soft": "blur_filter"}, build_agents(["blur_filter"]))
    assert removed_by == {1: ["blur_filter"]}


@pytest.mark.parametrize("seed", range(5))
def test_n4_a_cut_question_still_is_one(seed):
    draft = Draft(PHOTO, question="What color is it?", answers=("red",))
    cut = DAMAGES["cut_questions"].apply(draft, random.Random(seed), [])
    assert cut.question in ("What", "What color")


@pytest.mark.parametrize(("prompt", "warned"), [("keep blur at most 0", True), ("keep blur at most 1", False)])
def test_n4_a_warning_is_given_where_nothing_is_kept(prompt, warned, tmp_path, monkeypatch, capsys):
    pool = _pool(tmp_path / "pool", _crops(2))
    (tmp_path / "report.jsonl").write_text('{"report": "r", "pool": "pool", "id": "first"}\n')
    answer = f"<agents><agent><name>blur_filter</name><prompt>{prompt}</prompt></agent></agents>"
    monkeypatch.setattr(filter_dataset, "select_agents", lambda *arguments: [answer])
    filter_dataset.main(
        ["--dataset_name", str(tmp_path / "report.jsonl"), "--model", "m", "--output", str(tmp_path / "kept.jsonl")]
    )
    shown = capsys.readouterr().err
    assert ("warning: report first: nothing is kept of its data set" in shown) == warned
    assert pool


# -- T19: the best copy stays, judged after the others ---------------------------------------------------------------

SOFT = PHOTO.filter(ImageFilter.GaussianBlur(2))
SOFTER = PHOTO.filter(ImageFilter.GaussianBlur(3))
SMALL = PHOTO.resize((128, 128), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_t19_the_sharp_copy_stays_wherever_it_stands(order, tmp_path):
    pictures = [SOFT, PHOTO, SOFTER]
    pool = _pool(tmp_path, [pictures[number] for number in order])
    sharp = order.index(1)
    for names in itertools.permutations(["near_duplicate_filter", "blur_filter", "exact_duplicate_filter"]):
        assert _kept(pool, *names, near_duplicate_filter="drop near copies with a distance below 0.3") == [sharp]
        assert _kept(pool, names[0], near_duplicate_filter="distance at most 0.3") != []


@pytest.mark.parametrize(
    ("pictures", "best"),
    [
        ([SMALL, PHOTO], 1),  # the larger one
        ([SOFT, SMALL], 0),  # resolution comes before sharpness
        ([SOFT, PHOTO, SMALL], 1),
        ([PHOTO, PHOTO], 0),  # equal ones: the first
    ],
)
def test_t19_of_near_copies_the_best_stays(pictures, best, tmp_path):
    assert _kept(_pool(tmp_path, pictures), "near_duplicate_filter", near_duplicate_filter="distance at most 0.3") == [
        best
    ]


def test_t19_a_copy_of_what_another_agent_drops_is_none(tmp_path):
    fields = [{"question": "Who?"}, {"question": "who?"}, {"question": "Who is that?"}, {"question": "who is that?"}]
    pool = _pool(tmp_path, [PHOTO] * 4, fields)
    assert _kept(pool, "exact_duplicate_filter") == [0, 2]
    assert _kept(pool, "exact_duplicate_filter", "text_length_filter") == [2]
    large, low = PHOTO.resize((512, 512)), PHOTO
    pool = _pool(tmp_path / "aspects", [large.resize((1200, 512)), low.resize((300, 256)), low])
    near = {"near_duplicate_filter": "distance at most 0.4", "aspect_ratio_filter": "keep aspect at most 2"}
    assert _kept(pool, "near_duplicate_filter", "aspect_ratio_filter", **near) != []


def test_t19_the_order_of_agents_changes_nothing(tmp_path):
    rng = random.Random(0)
    pictures = [PHOTO, SOFT, SOFTER, SMALL, PHOTO.resize((600, 200)), *_crops(3)] * 2
    fields = [{"question": rng.choice(["", "Who?", "Who is that?"]), "answers": ("a",)} for _ in pictures]
    pool = _pool(tmp_path, pictures, fields)
    names = list(DEFAULT_AGENTS)
    expected = _kept(pool, *names)
    assert expected
    for _ in range(20):
        rng.shuffle(names)
        assert _kept(pool, *names) == expected


def test_t19_routed_agents_of_copies_are_judged_last_too(tmp_path):
    pool = _pool(tmp_path, [PHOTO.resize((64, 64)).resize((300, 300)), PHOTO])
    agents = build_agents(["blur_filter", "exact_duplicate_filter", "near_duplicate_filter"])
    routes = {"soft": "blur_filter", "copy": "near_duplicate_filter"}
    removed_by = run_routes(pool, {0: ["soft", "copy"], 1: ["copy"]}, routes, agents)
    assert list(removed_by) == [0]
