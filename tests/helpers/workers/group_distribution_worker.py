"""Training on stored groups on one process or more, for test_group_distribution.py; gives figures and weights.

    python tests/helpers/workers/group_distribution_worker.py SETTINGS.json...

Settings (worker_main.py): model, pointers, completions (folders), runs (name -> settings of the configuration, with
`kind` and `method`).
"""

from pathlib import Path

from stored_groups import selector_trainer, vlm_trainer
from worker_main import run_all

from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer
from trainers.rce import RCEConfig, RCETrainer

METHODS = {"rce": (RCETrainer, RCEConfig), "offline_grpo": (OfflineGRPOTrainer, OfflineGRPOConfig)}


def run(settings: dict, name: str) -> dict:
    config = dict(settings["runs"][name])
    kind, (cls, config_cls) = config.pop("kind"), METHODS[config.pop("method")]
    args = config_cls(**config)
    if kind == "selector":
        trainer = selector_trainer(Path(settings["pointers"]), cls, args)
    else:
        trainer = vlm_trainer(Path(settings["completions"]), settings["model"], cls, args)
    trainer.train()
    figures = {}
    for key in ("loss", "grad_norm", "kl", "accuracy", "expected_reward"):
        figures[key] = [entry[key] for entry in trainer.state.log_history if key in entry]
    model = trainer.accelerator.unwrap_model(trainer.model)
    figures["weights"] = {name: value.detach().double().norm().item() for name, value in model.named_parameters()}
    figures["evaluation"] = trainer.evaluate(trainer.train_dataset)["eval_accuracy"]
    return figures


if __name__ == "__main__":
    run_all(run)
