"""The factor trainer on one process or more, for test_factor_distribution.py; gives figures, weights and results.

    python tests/helpers/workers/factor_distribution_worker.py SETTINGS.json...

Settings (worker_main.py): data and model (folders), runs (name -> settings of the configuration, with `kind`).
"""

from pathlib import Path

from factor_runs import labelled_images, small_predictor
from worker_main import run_all

from trainers.factors import FactorTrainer, FactorTrainingConfig


def run(settings: dict, name: str) -> dict:
    config = dict(settings["runs"][name])
    kind = config.pop("kind")
    args = FactorTrainingConfig(**config)
    model = small_predictor(settings["model"] if kind == "qwen" else None)
    trainer = FactorTrainer(model, args, *labelled_images(Path(settings["data"])))
    trainer.train()
    figures = {}
    for key in ("loss", "grad_norm", "eval_loss", "eval_f1_micro"):
        figures[key] = [entry[key] for entry in trainer.state.log_history if key in entry]
    model = trainer.accelerator.unwrap_model(trainer.model)
    figures["weights"] = {name: value.detach().double().norm().item() for name, value in model.state_dict().items()}
    return figures | {"results": trainer.results}


if __name__ == "__main__":
    run_all(run)
