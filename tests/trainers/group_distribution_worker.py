"""One process of a distributed run on stored groups; started by test_group_distribution.py, alone or by torchrun.

    python tests/trainers/group_distribution_worker.py SETTINGS.json

Settings: model, pointers, completions (folders), runs (name -> settings of the configuration, with `kind` and
`method`), output (JSON file that the main process writes: losses, KLs, gradient norms and weights of each run).
"""

import faulthandler
import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from stored_groups import selector_trainer, vlm_trainer

from data.shards import end_processes
from trainers.offline_grpo import OfflineGRPOConfig, OfflineGRPOTrainer
from trainers.rce import RCEConfig, RCETrainer

METHODS = {"rce": (RCETrainer, RCEConfig), "offline_grpo": (OfflineGRPOTrainer, OfflineGRPOConfig)}


def run(settings: dict, name: str) -> dict:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
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


def main() -> None:
    faulthandler.dump_traceback_later(240, repeat=True)  # shows where a run that hangs waits
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    results = {name: run(settings, name) for name in settings["runs"]}
    if AcceleratorState().process_index == 0:
        Path(settings["output"]).write_text(json.dumps(results), encoding="utf-8")
    end_processes()


if __name__ == "__main__":
    main()
