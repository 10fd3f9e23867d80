"""One process of a reward model's training; started by test_reward_distribution.py, alone or by torchrun.

    python tests/trainers/preference_worker.py SETTINGS.json

Settings: model (folder of a reward model), runs (name -> {"data": folder, "args": settings of RewardConfig}), output
(JSON file that the main process writes: figures and a few weights of each run).
"""

import faulthandler
import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

from data.preferences import load_preferences
from data.shards import end_processes
from models.loading import load_processor
from models.reward_model import from_backbone
from trainers.reward import RewardConfig, RewardTrainer

PARTS = ("visual.patch_embed", "layers.0", "score_head")


def fingerprint(trainer) -> dict[str, float]:
    """Norms of some weights, gathered where they are sharded."""
    norms = {}
    for name, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        if any(part in name for part in PARTS):
            if hasattr(parameter, "ds_id"):
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    norms[name] = parameter.data.double().norm().item()
            else:
                norms[name] = parameter.data.double().norm().item()
    return norms


def run(model: str, data: str, settings: dict) -> dict:
    """Trains as one of the runs says."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    args = RewardConfig(**settings)
    records = load_preferences(data)[0]
    trainer = RewardTrainer(
        from_backbone(model, args.model_settings(), dtype=torch.float32),
        args,
        records,
        records[:5],
        processing_class=load_processor(model, max_pixels=1024),
    )
    trainer.train()
    figures = {"weights": fingerprint(trainer), "eval": trainer.evaluate()}
    for key in ("loss", "grad_norm", "accuracy", "score_gap", "score_std", "lm_loss"):
        figures[key] = [entry[key] for entry in trainer.state.log_history if key in entry]
    trainer.save_model(args.output_dir)
    return figures


def main() -> None:
    faulthandler.dump_traceback_later(240, repeat=True)  # shows where a run that hangs waits
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = {
        name: run(settings["model"], one["data"], {**one["args"], "output_dir": one["output_dir"]})
        for name, one in settings["runs"].items()
    }
    if AcceleratorState().process_index == 0:
        Path(settings["output"]).write_text(json.dumps(results), encoding="utf-8")
    end_processes()


if __name__ == "__main__":
    main()
