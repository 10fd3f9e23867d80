"""Checkpoints as the earlier system wrote them become selectors that give the oracle's logits; others are refused."""

import pickle

import pytest
import torch
from selector_oracle import oracle_cases

from models.convert_selector import convert, main
from models.selectors.load import load_selector

CASES = {case.id: case for case in oracle_cases()}
SHAPES = ["c000", "c018", "c052", "full3001"]
"""Two layers; four heads and two layers; no input projection; full size."""


def pt_file(path, weights):
    """As its RCE and GRPO trainers write."""
    content = {"epoch": 5, "phase": "rce", "model_state_dict": weights, "kl_beta": 0.15, "metrics": {"val_loss": 1.5}}
    torch.save(content, path)
    return path


def ckpt_file(path, weights, prefix="model."):
    """As Lightning writes."""
    state = {prefix + name: value for name, value in weights.items()}
    torch.save({"epoch": 3, "global_step": 1200, "pytorch-lightning_version": "2.0.0", "state_dict": state}, path)
    return path


FILES = {
    "old.pt": pt_file,
    "old.ckpt": ckpt_file,
    "lever_lm.ckpt": lambda path, weights: ckpt_file(path, weights, "lever_lm."),
    "nested.ckpt": lambda path, weights: ckpt_file(path, weights, "lever_lm.pointer_selector."),
    "bare.ckpt": lambda path, weights: ckpt_file(path, weights, ""),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("case_id", SHAPES)
def test_logits_after_conversion_are_the_oracles(case_id, name, tmp_path):
    case = CASES[case_id]
    old, folder = FILES[name](tmp_path / name, case.part("w")), tmp_path / "new" / "selector"
    main(["--checkpoint", str(old), "--output_dir", str(folder), "--num_heads", str(case.config["num_heads"])])
    selector = load_selector(folder)
    assert selector.config.num_layers == case.config["num_layers"]
    output = selector(**case.inputs(), return_logits=True)
    torch.testing.assert_close(output.logits, case.tensors["out/teacher_logits"], rtol=0, atol=2e-5)


def test_what_was_stored_beside_the_weights_is_told(tmp_path, capsys):
    main(
        [
            "--checkpoint",
            str(pt_file(tmp_path / "old.pt", CASES["c000"].part("w"))),
            "--output_dir",
            str(tmp_path / "new"),
        ]
    )
    said = capsys.readouterr().out
    assert "2 layers, history gate, epoch 5, phase rce, kl_beta 0.15" in said
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors"}


def test_a_bi_encoder_has_neither_layers_nor_history(tmp_path):
    weights = {
        name: value for name, value in CASES["c000"].part("w").items() if "_proj." in name and "attn" not in name
    }
    selector, _ = convert(ckpt_file(tmp_path / "v1.ckpt", weights), temperature=0.2)
    assert (selector.config.num_layers, selector.config.history, selector.config.temperature) == (0, "none", 0.2)


def test_bfloat16_weights_become_float32(tmp_path):
    weights = {name: value.bfloat16() for name, value in CASES["c000"].part("w").items()}
    selector, _ = convert(pt_file(tmp_path / "old.pt", weights))
    assert selector.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda weights: weights.update({"gru.weight_ih": torch.zeros(2), "mmr_lambda": torch.zeros(1)}),
            ["unknown: gru.weight_ih", "unknown: mmr_lambda"],
        ),
        (lambda weights: weights.pop("attn_norms.1.bias"), ["missing: attn_norms.1.bias"]),
        (lambda weights: weights.pop("query_update_gate.bias"), ["missing: query_update_gate.bias"]),
        (
            lambda weights: weights.update({"query_proj.weight": torch.zeros(3, 16)}),
            [r"query_proj.weight: expected shape \(16, 16\), found \(3, 16\)"],
        ),
        (
            lambda weights: weights.update({"query_proj.weight": torch.full((16, 16), torch.nan)}),
            ["query_proj.weight: expected finite numbers, found NaN"],
        ),
        (
            lambda weights: weights.update(steps=torch.tensor([1])),
            ["steps: expected a tensor of floating-point numbers"],
        ),
        (lambda weights: weights.pop("cand_proj.weight"), ["expected one weight named cand_proj.weight, found 0"]),
    ],
)
def test_weights_that_are_not_understood_are_listed(tmp_path, change, messages):
    weights = CASES["c000"].part("w")
    change(weights)
    old = ckpt_file(tmp_path / "old.ckpt", weights)
    for message in messages:
        with pytest.raises(ValueError, match=rf"old\.ckpt: .*{message}"):
            convert(old)


def test_encoders_beside_the_selector_are_refused(tmp_path):
    old = ckpt_file(tmp_path / "old.ckpt", CASES["c000"].part("w"), "lever_lm.")
    content = torch.load(old, weights_only=True)
    content["state_dict"]["text_encoder_lora.weight"] = torch.zeros(1)
    torch.save(content, old)
    with pytest.raises(ValueError, match=r"weights outside of 'lever_lm\.', .*: text_encoder_lora\.weight"):
        convert(old)


class Harmful:
    """What unpickling would run."""

    def __reduce__(self):
        return exec, ("raise AssertionError('it ran')",)


@pytest.mark.parametrize("how", ["torch", "pickle", "text", "empty"])
def test_files_that_are_no_checkpoints_are_refused_and_not_run(how, tmp_path):
    path = tmp_path / "old.pt"
    if how == "torch":
        torch.save({"model_state_dict": {}, "hyper_parameters": Harmful()}, path)
    else:
        path.write_bytes({"pickle": pickle.dumps(Harmful()), "text": b"hello", "empty": b""}[how])
    with pytest.raises(
        ValueError, match=r"old\.pt: not a (checkpoint of tensors and plain|file that torch.save wrote)"
    ):
        convert(path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}])
def test_files_of_another_form_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(ValueError, match=r"old\.pt: .*expected a dictionary, found"):
        convert(tmp_path / "old.pt")


def test_errors_of_the_command(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*none\.pt: no such file"):
        main(["--checkpoint", str(tmp_path / "none.pt"), "--output_dir", str(tmp_path / "new")])
    old = pt_file(tmp_path / "old.pt", CASES["c000"].part("w"))
    with pytest.raises(SystemExit, match="num_heads: expected a divisor of hidden_size 16, found 3"):
        main(["--checkpoint", str(old), "--output_dir", str(tmp_path / "new"), "--num_heads", "3"])
    with pytest.raises(SystemExit, match="exists and is not an empty folder"):
        main(["--checkpoint", str(old), "--output_dir", str(tmp_path)])
