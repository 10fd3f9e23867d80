"""A reward model's training on one process or more, for test_reward_distribution.py; gives figures and a few weights.

    python tests/helpers/workers/preference_worker.py SETTINGS.json...

Settings (worker_main.py): model (folder of a reward model), runs (name -> {"data": folder, "args": settings of
RewardConfig, "output_dir": folder}).
"""

import torch
from worker_main import run_all

from data.preferences import load_preferences
from models.families.loading import load_processor
from models.reward.load import from_backbone
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


def run(settings: dict, name: str) -> dict:
    """Trains as one of the runs says."""
    model, one = settings["model"], settings["runs"][name]
    args = RewardConfig(**one["args"], output_dir=one["output_dir"])
    records = load_preferences(one["data"])[0]
    trainer = RewardTrainer(
        from_backbone(model, args.model_settings(), dtype=torch.float32),
        args,
        None,
        records,
        records[:5],
        load_processor(model, max_pixels=1024),
    )
    trainer.train()
    figures = {"weights": fingerprint(trainer), "eval": trainer.evaluate()}
    for key in ("loss", "grad_norm", "accuracy", "score_gap", "score_std", "lm_loss"):
        figures[key] = [entry[key] for entry in trainer.state.log_history if key in entry]
    trainer.save_model(args.output_dir)
    return figures


if __name__ == "__main__":
    run_all(run)
