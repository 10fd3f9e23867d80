"""P10: a run prints no messages of libraries that the toolkit can avoid, and no script has to silence any."""

import logging
import warnings

import pytest
import trl
from places import ROOT
from transformers import GPT2Config, GPT2LMHeadModel
from trl.models.utils import disable_gradient_checkpointing

from data.cli.library_noise import leave_out_noise


@pytest.fixture
def strict_warnings():
    """Every warning that is not left out is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leave_out_noise()
        yield


@pytest.mark.parametrize("value", [True, False])
def test_p10_recipe_may_say_gradient_checkpointing(value, strict_warnings, tmp_path):
    args = trl.SFTConfig(str(tmp_path), gradient_checkpointing=value, bf16=False, use_cpu=True, report_to="none")
    assert args.gradient_checkpointing is value


def test_p10_rollouts_of_trl_say_nothing_of_checkpointing(strict_warnings):
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=8, n_positions=8))
    with disable_gradient_checkpointing(model):
        pass


def test_p10_other_deprecations_are_still_shown(strict_warnings):
    with pytest.raises(FutureWarning, match="^`other` is deprecated$"):
        warnings.warn("`other` is deprecated", FutureWarning, stacklevel=1)


def test_p10_useless_logs_are_left_out_and_others_shown(caplog, monkeypatch):
    for name in ("bitsandbytes.backends.cpu.ops", "DeepSpeed"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward from %s", "x")
    logging.getLogger("DeepSpeed").warning("Setting accelerator to CPU. If you have GPU or other accelerator, ...")
    assert not caplog.records
    logging.getLogger("DeepSpeed").warning("Something else")
    assert {record.message for record in caplog.records} == {"Something else"}  # by each handler that heard it


@pytest.mark.parametrize("path", sorted(ROOT.glob("pipelines/*.sh")), ids=lambda path: path.name)
def test_p10_scripts_silence_nothing(path):
    text = path.read_text(encoding="utf-8")
    assert not [word for word in ("PYTHONWARNINGS", "VERBOSITY", "LOG_LEVEL", "2>/dev/null") if word in text]
