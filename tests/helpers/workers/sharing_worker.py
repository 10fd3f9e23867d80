"""RCE under ZeRO-3 with and without shared prompts, for test_shared_distribution.py.

    python tests/helpers/workers/sharing_worker.py SETTINGS.json...

Settings (worker_main.py): model, completions (folders), args (settings of RCEConfig), runs (name -> whether to share),
folder (where the main process writes the weights of each run, and each process the numbers of tokens that its language
model read).
"""

import json
from pathlib import Path

import deepspeed
from safetensors.torch import save_file
from stored_groups import vlm_trainer
from worker_main import run_all

from trainers.rce import RCEConfig, RCETrainer


def run(settings: dict, name: str) -> dict:
    shares = settings["runs"][name]
    args = RCEConfig(**settings["args"], shared_prefix=shares, shared_prefix_check=shares)
    trainer = vlm_trainer(Path(settings["completions"]), settings["model"], RCETrainer, args)
    tokens = []

    def note(module, args, kwargs):
        if next(module.parameters()).requires_grad:  # not for the check
            tokens.append(kwargs["inputs_embeds"].shape[:2].numel())

    trainer.model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    trainer.train()
    process = trainer.accelerator.process_index
    weights = {}
    for key, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[key] = parameter.detach().clone()
    folder = Path(settings["folder"])
    (folder / f"{name}_{process}.json").write_text(json.dumps(tokens), encoding="utf-8")
    if process == 0:
        save_file(weights, folder / f"{name}.safetensors")
    return {}


if __name__ == "__main__":
    run_all(run)
