"""One process of a distributed run of the factor trainer; test_factor_distribution.py starts it, alone or by torchrun.

    python tests/trainers/factor_distribution_worker.py SETTINGS.json

Settings: data and model (folders), runs (name -> settings of the configuration, with `kind`), output (JSON file that
the main process writes: figures, weights and results of each run).
"""

import faulthandler
import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from factor_runs import labelled_images, small_predictor

from data.shards import end_processes
from trainers.factors import FactorTrainer, FactorTrainingConfig


def run(settings: dict, name: str) -> dict:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
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


def main() -> None:
    faulthandler.dump_traceback_later(240, repeat=True)  # shows where a run that hangs waits
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = {name: run(settings, name) for name in settings["runs"]}
    if AcceleratorState().process_index == 0:
        Path(settings["output"]).write_text(json.dumps(results), encoding="utf-8")
    end_processes()


if __name__ == "__main__":
    main()
