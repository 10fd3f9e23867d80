"""One process of RCE under ZeRO-3 with and without shared prompts; started by test_shared_distribution.py.

    torchrun tests/trainers/sharing_worker.py SETTINGS.json

Settings: model, completions (folders), args (settings of RCEConfig), output (folder: the main process writes the
weights of both runs, and each process the numbers of tokens that its language model read).
"""

import faulthandler
import json
import sys
from pathlib import Path

import deepspeed
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import save_file
from stored_groups import vlm_trainer

from data.shards import end_processes
from trainers.rce import RCEConfig, RCETrainer


def run(settings: dict, shared: bool) -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    args = RCEConfig(**settings["args"], shared_prefix=shared)
    trainer = vlm_trainer(Path(settings["completions"]), settings["model"], RCETrainer, args)
    tokens = []
    trainer.model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: tokens.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    trainer.train()
    name, process = "shared" if shared else "plain", trainer.accelerator.process_index
    weights = {}
    for key, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[key] = parameter.detach().clone()
    folder = Path(settings["output"])
    (folder / f"{name}_{process}.json").write_text(json.dumps(tokens), encoding="utf-8")
    if process == 0:
        save_file(weights, folder / f"{name}.safetensors")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, repeat=True)  # shows where a run that hangs waits
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for choice in (True, False):
        run(content, choice)
    end_processes()
