"""A selector is trained along with its encoders, from a recipe; what it learned is used through tables afterwards."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_encoders import write_coloured_groups, write_coloured_records, write_encoders
from trl import ModelConfig

from data.candidates.embedding_table import EmbeddingTable
from data.candidates.examples import load_examples
from data.candidates.pools import load_pools
from data.io.images import open_image
from data.io.records import RecordError, write_jsonl
from models.selectors.encoder_inputs import InputReader
from models.selectors.encoding import EncodingSelector
from models.selectors.gpt2 import GPT2Selector, GPT2SelectorConfig
from models.selectors.load import load_encoding_selector, load_selector
from rollouts.embeddings import main as embed_main
from rollouts.example_selection.data import load_selection_data
from rollouts.example_selection.selection_methods import load_fitting_selector, selected
from trainers import offline_grpo, rce, sft
from trainers.groups.arguments import GroupArguments
from trainers.groups.data import load_stored_groups
from trainers.groups.policies import prepare_groups
from trainers.groups.run import reference_loader
from trainers.groups.selector_policy import EncodingPolicy, RecordTable, freeze_backbone
from trainers.groups.selectors import load_selection_records
from trainers.setup.recipes import RecipeError


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_coloured_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def groups(tmp_path_factory, records):
    return write_coloured_groups(tmp_path_factory.mktemp("groups"), records)


SELECTOR = {"hidden_size": 16, "num_layers": 1}


@pytest.fixture(scope="module")
def recipe(encoders, records, groups):
    """A good recipe."""
    return {
        "policy": "selector",
        "selector": {
            "model_type": "encoding_selector",
            "text_encoder": encoders["bert"],
            "image_encoder": encoders["clip"],
            "lora_rank": 4,
            "example_text": "question_answer",
            **SELECTOR,
        },
        "dataset_name": str(groups),
        "query_data": str(records),
        "query_splits": ["train", "validation"],
        "example_data": str(records),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def run(script, recipe: dict, folder, **changes) -> None:
    """Runs a training script with a recipe; keys that are `None` are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = {**recipe, "output_dir": str(folder / "run"), **changes}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    script.main(["--config", str(path)])


def history(folder, key: str) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[key] for entry in log if key in entry]


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """The folder of a warm start, with a checkpoint on its way."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6, "eval_strategy": "epoch"}
    run(sft, recipe, folder, **settings)
    return folder / "run"


# -- the policy -------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(encoders, records):
    reader = InputReader.of_encoders(encoders["bert"], encoders["clip"])
    examples = load_examples(records)
    return EncodingPolicy(RecordTable(examples), RecordTable(examples, "question_answer"), reader)


@pytest.fixture
def stored(groups):
    return load_stored_groups(GroupArguments(dataset_name=str(groups)), "train")


@pytest.fixture
def model(encoders):
    return EncodingSelector.from_encoders(encoders["bert"], encoders["clip"], selector=SELECTOR, lora_rank=4).eval()


def inputs_by_hand(records: list, reader: InputReader, with_answers: bool = False) -> dict[str, torch.Tensor]:
    texts = [record.question + f" {record.answers[0]}" * with_answers for record in records]
    tokens = reader.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = reader.image_processor([open_image(record.images[0]) for record in records], return_tensors="pt")
    return {**{name: tokens[name] for name in ("input_ids", "attention_mask")}, **pixels}


def test_ragged_groups_score_as_the_model_scores_each_alone(policy, stored, model, records):
    by_id = {record.id: record for record in load_examples(records)}
    items = prepare_groups(policy, stored)
    assert len({len(item["pool"]) for item in items}) > 1
    with torch.no_grad():
        together = policy.group_log_probs(model, policy.collate(items))
        for row, group in enumerate(stored):
            query = inputs_by_hand([by_id[group.id]], policy.reader)
            pool = inputs_by_hand([by_id[item] for item in group.pool], policy.reader, with_answers=True)
            pointers = [[group.pool.index(item) for item in one.pointer] for one in group.candidates]
            alone = model(query, pool, torch.arange(len(group.pool))[None], torch.tensor([pointers]))
            found = together.log_probs[row][together.mask[row]]
            torch.testing.assert_close(found, alone.log_probs[0].flatten(), atol=1e-5, rtol=0)


def test_a_batch_reads_every_example_once(policy, stored):
    batch = policy.collate(prepare_groups(policy, stored))
    used = {item for group in stored for item in group.pool}
    assert list(batch)[0] == "index"
    assert {name: len(part) for name, part in batch["example_inputs"].items()} == dict.fromkeys(
        ("pixel_values", "input_ids", "attention_mask"), len(used)
    )
    assert len(batch["query_inputs"]["input_ids"]) == len(stored)


def test_text_and_image_both_count(policy, stored, model):
    """Otherwise the tests above would pass without either."""
    batch = policy.collate(prepare_groups(policy, stored))
    with torch.no_grad():
        before = policy.group_log_probs(model, batch).log_probs
        for name in ("pixel_values", "input_ids"):
            other = {**batch["example_inputs"], name: batch["example_inputs"][name].flip(0)}
            after = policy.group_log_probs(model, {**batch, "example_inputs": other}).log_probs
            assert (after - before).abs().max() > 1e-4, name


def test_answers_are_read_only_if_asked_for(policy, records):
    first = policy.queries.records[0]
    tokens = policy.reader.tokenizer
    shown, asked = (
        tokens.decode(table.inputs([0], policy.reader)["input_ids"][0]) for table in (policy.examples, policy.queries)
    )
    assert f"? {first.answers[0]} [SEP]" in shown
    assert "? [SEP]" in asked


def test_every_trainable_parameter_has_a_gradient(policy, stored, model):
    """DDP and ZeRO wait for it, also where a part takes no share: BERT's pooler."""
    scored = policy.group_log_probs(model.train(), policy.collate(prepare_groups(policy, stored)))
    scored.log_probs.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name.startswith("selector.") or ".lora_" in name), name


def test_activation_checkpointing_changes_no_gradient(policy, stored, model):
    gradients = []
    batch = policy.collate(prepare_groups(policy, stored)[:2])
    for module in model.modules():  # noise would differ between the two
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for _ in range(2):
        model.zero_grad()
        policy.group_log_probs(model.train(), batch).log_probs.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        model.activation_checkpointing_enable()
    assert any(value.abs().sum() > 0 for name, value in gradients[0].items() if ".lora_" in name)
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, msg=name)


def test_a_frozen_backbone_leaves_encoders_and_projections(model):
    freeze_backbone(model)
    left = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert left
    parts = {name.split(".")[1] for name in left}
    assert all(name.startswith("selector.") for name in left)
    assert not parts & {"input_proj", "query_proj", "cand_proj"}


# -- runs -------------------------------------------------------------------------------------------------------------


def test_the_warm_start_learns_adapters_and_selector_and_nothing_else(trained, recipe):
    losses = history(trained, "loss")
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    assert len(history(trained, "eval_accuracy")) >= 2
    settings = {key: value for key, value in recipe["selector"].items() if key not in ("model_type", "hidden_size")}
    before = EncodingSelector.from_encoders(
        *(settings.pop(key) for key in ("text_encoder", "image_encoder")),
        lora_rank=settings.pop("lora_rank"),
        example_text=settings.pop("example_text"),
        selector={**SELECTOR, "seed": 42},
    )
    after = load_encoding_selector(trained)
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        learns = name.startswith("selector.") or (".lora_" in name and "pooler" not in name)
        assert learns != torch.equal(old, new), name


def test_what_is_saved_reads_and_scores_as_it_did(trained, policy, stored):
    model = load_encoding_selector(trained)
    reader = InputReader.of_selector(trained, model.config)
    assert model.config.example_text == "question_answer"
    again = EncodingPolicy(policy.queries, policy.examples, reader)
    items = prepare_groups(policy, stored)
    batches = [one.collate(items) for one in (policy, again)]
    for side in ("query_inputs", "example_inputs"):
        for name, tensor in batches[0][side].items():
            assert torch.equal(tensor, batches[1][side][name]), name
    newest = load_encoding_selector(trained / "checkpoint-12")
    with torch.no_grad():
        scores = [again.group_log_probs(one, batches[1]).log_probs for one in (model, newest)]
    assert torch.equal(*scores)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(trained, recipe, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(trained / "checkpoint-6", tmp_path / "run" / "checkpoint-6")
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6, "eval_strategy": "epoch"}
    run(sft, recipe, tmp_path, **settings)
    assert len(history(tmp_path / "run", "loss")) == 12
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_offline_grpo_goes_on_from_it(trained, recipe, tmp_path):
    run(
        offline_grpo,
        {**recipe, "selector": None, "model_name_or_path": str(trained), "reference_model": str(trained)},
        tmp_path,
        max_steps=8,
        adaptive_kl=False,
        beta=0.01,
        learning_rate=3e-3,
    )
    assert history(tmp_path / "run", "ratio")[0] == pytest.approx(1, abs=1e-5)  # no dropout, of BERT either
    assert history(tmp_path / "run", "kl")[0] == pytest.approx(0, abs=1e-6)
    rewards = history(tmp_path / "run", "expected_reward")
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.02
    assert load_encoding_selector(tmp_path / "run").config.example_text == "question_answer"


def test_rce_of_one_encoder_alone(recipe, encoders, tmp_path):
    selector = {"model_type": "encoding_selector", "image_encoder": encoders["clip"], **SELECTOR}
    run(rce, recipe, tmp_path, selector=selector, max_steps=6, gradient_checkpointing=True)
    assert np.mean(history(tmp_path / "run", "loss")[-2:]) < history(tmp_path / "run", "loss")[0]
    assert not (tmp_path / "run" / "tokenizer.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_the_vision_tower_of_a_family_learns_along(recipe, tiny_family, records, tmp_path, family):
    selector = recipe["selector"] | {"image_encoder": str(tiny_family(family))}
    run(rce, recipe, tmp_path, selector=selector, max_steps=6, gradient_checkpointing=True)
    assert np.mean(history(tmp_path / "run", "loss")[-2:]) < history(tmp_path / "run", "loss")[0]
    table = embed(records, tmp_path / "run", tmp_path / "table.safetensors", "--text", "question")
    assert [part.name for part in table.parts] == ["image", "text"]


# -- afterwards -------------------------------------------------------------------------------------------------------


def embed(records, selector, output, *options: str) -> EmbeddingTable:
    arguments = [
        "--dataset_name",
        str(records),
        "--selector",
        str(selector),
        "--device",
        "cpu",
        "--cache_dir",
        "",
        *options,
    ]
    embed_main([*arguments, "--output", str(output)])
    return EmbeddingTable.load(output)


@pytest.fixture(scope="module")
def tables(trained, records, tmp_path_factory):
    """Embeddings of queries and examples by the trained encoders."""
    folder = tmp_path_factory.mktemp("tables")
    names = {"queries": "question", "examples": "question_answer"}
    return [embed(records, trained, folder / f"{name}.safetensors", "--text", text) for name, text in names.items()]


@pytest.fixture(scope="module")
def data(records, groups, tmp_path_factory):
    rows = [json.loads(line) for line in (groups / "train.jsonl").read_text().splitlines()]
    pools = tmp_path_factory.mktemp("pools") / "pools.jsonl"
    write_jsonl(pools, [{"query_id": row["id"], "pool": row["pool"]} for row in rows])
    assert len(load_pools(pools)) == len(rows)
    source = (str(records), "train")
    return load_selection_data(source, source, pools, shots=2, only_pooled=True)


def test_choices_through_tables_are_those_of_the_model(trained, tables, data):
    found, selector = load_fitting_selector(str(trained), tuple(tables), 2)
    assert found == str(trained)
    model = load_encoding_selector(trained)
    reader = InputReader.of_selector(trained, model.config)
    expected = []
    for query in data.queries:
        pool = data.pool_of(query)
        query_inputs = inputs_by_hand([query], reader)
        example_inputs = inputs_by_hand([data.examples[item] for item in pool], reader, with_answers=True)
        chosen = model.select(query_inputs, example_inputs, torch.arange(len(pool))[None], shots=2)
        expected.append([pool[place] for place in chosen.pointers[0, 0].tolist()])
    assert selected(selector, data, 2, *tables) == expected
    assert len({tuple(choice) for choice in expected}) > 2


def test_load_selector_takes_the_selector_inside(trained):
    inside, whole = load_selector(trained), load_encoding_selector(trained)
    assert not inside.training
    assert all(torch.equal(value, inside.state_dict()[name]) for name, value in whole.selector.state_dict().items())


def test_tables_of_other_encoders_are_refused(trained, tables):
    width = tables[0].width
    other = EmbeddingTable(tables[0].ids, np.ones((len(tables[0]), width), dtype=np.float32))
    for place, option in enumerate(("--query_table", "--example_table")):
        given = [other if place == number else table for number, table in enumerate(tables)]
        with pytest.raises(RecordError, match=f"{option}: .*expected those of the encoders image .*--selector"):
            load_fitting_selector(str(trained), tuple(given), 2)
    assert load_fitting_selector(str(trained / "checkpoint-12"), tuple(tables), 2)  # the same weights
    with pytest.raises(RecordError, match="expected those of the encoders"):
        load_fitting_selector(str(trained / "checkpoint-6"), tuple(tables), 2)


def test_a_later_stage_may_learn_from_tables_alone(trained, tables, recipe, tmp_path):
    paths = [str(table.save(tmp_path / f"{name}.safetensors")) for name, table in zip("qe", tables, strict=True)]
    records = dict.fromkeys(("selector", "query_data", "query_splits", "example_data"))
    given = {"model_name_or_path": str(trained), "query_table": paths[0], "example_table": paths[1]}
    run(rce, recipe, tmp_path, **records, **given, max_steps=2)
    selector = load_selector(tmp_path / "run")
    assert selector.config.embedding_size == tables[0].width
    start = load_selector(trained).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in selector.state_dict().items())


def test_a_later_stage_may_start_from_a_gpt2_selector(tables, recipe, tmp_path):
    """Another model that is told by the type in its folder."""
    paths = [str(table.save(tmp_path / f"{name}.safetensors")) for name, table in zip("qe", tables, strict=True)]
    GPT2Selector(GPT2SelectorConfig(embedding_size=tables[0].width, hidden_size=16)).save_pretrained(tmp_path / "gpt2")
    records = dict.fromkeys(("selector", "query_data", "query_splits", "example_data"))
    given = {"model_name_or_path": str(tmp_path / "gpt2"), "query_table": paths[0], "example_table": paths[1]}
    run(rce, recipe, tmp_path, **records, **given, max_steps=1)
    assert isinstance(load_selector(tmp_path / "run"), GPT2Selector)


def test_embeddings_say_which_text(trained, records, tmp_path, capsys):
    with pytest.raises(SystemExit, match="--text: this selector reads the question of a query, question_answer of an"):
        embed(records, trained, tmp_path / "t.safetensors")
    load_selector(trained).save_pretrained(tmp_path / "inside")
    with pytest.raises(SystemExit, match="inside: this selector has no encoders"):
        embed(records, tmp_path / "inside", tmp_path / "t.safetensors")
    with pytest.raises(SystemExit):
        embed(records, trained, tmp_path / "t.safetensors", "--text_encoder", "bert")
    assert "or both; or --selector" in capsys.readouterr().err


# -- what is wrong ----------------------------------------------------------------------------------------------------


def described(**changes):
    return lambda recipe: {"selector": {**recipe["selector"], **changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_data": None, "query_splits": None}, "query_data: model_type encoding_selector needs .* example_data"),
        ({"query_data": None}, "query_splits: of query_data, which is not set"),
        ({"query_table": "t.safetensors"}, "query_data and query_table both say what the selector reads"),
        ({"query_splits": ["train"]}, None),
        ({"query_splits": ["test"]}, r"query_data: .*found none of test\.jsonl"),
        ({"example_split": "validation"}, "example_data: no record has the id 'e0'"),
        ({"query_data": "/nowhere.jsonl"}, "query_data: /nowhere.jsonl: no such file"),
        ({"selector": {**SELECTOR}}, "query_data: only model_type encoding_selector reads records, found pointer_sel"),
        (described(lora_rang=3), "selector: lora_rang: unknown; .*lora_rank, lora_alpha, lora_dropout, example_text"),
        (described(lora_rank=0), "selector: lora_rank: expected at least 1, found 0"),
        (described(scorer="best"), "selector: scorer: expected one of cosine"),
        (described(example_text="answer"), "selector: example_text: expected one of question, question_answer"),
        (described(embedding_size=8), "selector: embedding_size: the encoders decide it"),
        (described(text_encoder=None, image_encoder=None), "expected at least one of them, found neither"),
        (described(image_encoder={"model_type": "clip"}), "selector: image_encoder: expected a folder or Hub id"),
        (described(text_encoder="/nowhere"), "selector: encoders cannot be loaded: .*nowhere"),
        (described(model_type="encoder"), "query_data: only model_type encoding_selector .*found encoder"),
    ],
)
def test_bad_recipes_end_with_one_clear_error(recipe, tmp_path, capsys, changes, message):
    changes = changes(recipe) if callable(changes) else changes
    if message is None:  # queries of the training groups are in this split
        run(sft, recipe, tmp_path, **changes, max_steps=1)
        return
    with pytest.raises(SystemExit):
        run(sft, recipe, tmp_path, **changes)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_an_encoder_without_a_tokenizer_or_image_processor(encoders, tmp_path):
    for name, file in (("bert", "tokenizer"), ("clip", "preprocessor")):
        shutil.copytree(encoders[name], tmp_path / name)
        for path in (tmp_path / name).glob(f"{file}*"):
            path.unlink()
    with pytest.raises(ValueError, match="bert: no tokenizer there: expected one of tokenizer_config.json"):
        InputReader.of_encoders(str(tmp_path / "bert"), None)
    with pytest.raises(OSError, match="image processor"):
        InputReader.of_encoders(None, str(tmp_path / "clip"))


@pytest.mark.parametrize("images", [["gone.png"], ["broken.png"], ["e0.png", "e1.png"]])
def test_images_that_cannot_be_read_are_named_before_training(records, stored, policy, tmp_path, images):
    folder = tmp_path / "records"
    shutil.copytree(records, folder)
    (folder / "broken.png").write_bytes(b"no image")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows[3] |= {"image": None, "images": images}
    write_jsonl(folder / "train.jsonl", rows)
    table = RecordTable(load_examples(folder))
    with pytest.raises(RecordError) as caught:
        prepare_groups(EncodingPolicy(policy.queries, table, policy.reader), stored)
    [problem] = caught.value.problems  # each image is tried once
    assert "example_data: record 'e3': field 'images': " in problem
    assert ("expected one image" in problem) == (len(images) == 2)


def test_two_splits_with_one_id_are_an_error(recipe, records, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(records, folder)
    shutil.copy(folder / "train.jsonl", folder / "validation.jsonl")
    given = {key: recipe[key] for key in ("dataset_name", "query_splits", "example_data")}
    with pytest.raises(RecordError, match="query_data: .*splits train, validation: field 'id': duplicate 'e0'"):
        load_selection_records(GroupArguments(**given, query_data=str(folder)))
    only_file = GroupArguments(**given, query_data=str(folder / "train.jsonl"))
    assert len(load_selection_records(only_file)[0]) == len(load_examples(records))


def test_records_are_not_for_vlms():
    with pytest.raises(ValueError, match="query_data: only policy: selector reads it"):
        GroupArguments(dataset_name="x", policy="vlm", query_data="y")


def test_a_selector_without_encoders_is_no_reference_for_one_that_has_them(trained, recipe, tables, tmp_path):
    load_selector(trained).save_pretrained(tmp_path)
    args = SimpleNamespace(reference_model=str(tmp_path), reference_revision=None)
    script = GroupArguments(dataset_name="x", query_data="y", example_data="y")
    with pytest.raises(RecipeError, match="reference_model: .*expected encoding_selector, found pointer_selector"):
        reference_loader(script, args, ModelConfig())(str(tmp_path))
