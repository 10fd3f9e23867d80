"""GRPO on one process or more, for test_distribution.py; gives losses, gradient norms and a few weights.

    python tests/helpers/workers/distribution_worker.py SETTINGS.json...

Settings (worker_main.py): model, data (folders), agents, max_pixels, runs (name -> settings of GRPOConfig, `canned`,
`text_only`: the rows whose images are removed, and `off_by`: by how much the second process's sampler is wrong).
"""

import torch
from accelerate.utils import gather_object
from worker_main import run_all

from data.tasks import load_rows
from filter_agents.registry import described_agents
from models.families.loading import image_reader, load_processor
from trainers.grpo import GRPOConfig, GRPOTrainer
from trainers.mixins.sampling_difference import SamplingDifferenceError
from trainers.setup.task_data import to_dataset


def mean_token(completions, completion_ids, **columns) -> list[float]:
    """A reward with contrast in every group, even for gibberish."""
    return [sum(ids) / (400 * len(ids)) for ids in completion_ids]


class CannedTrainer(GRPOTrainer):
    """Its completions depend on step and row alone, however the rows are spread over processes."""

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        first = self.accelerator.process_index * len(prompt_ids)
        completions = []
        for row in range(first, first + len(prompt_ids)):
            generator = torch.Generator().manual_seed(1000 * self.state.global_step + row)
            length = int(torch.randint(3, 13, (), generator=generator))
            completions.append(torch.randint(0, 256, (length,), generator=generator).tolist())
        return completions, None


class OffTrainer(GRPOTrainer):
    """Its sampler gives the tokens of the second process wrong log-probabilities."""

    off_by = 0.0

    def _generate_single_turn(self, *args, **kwargs):
        completions, log_probs = super()._generate_single_turn(*args, **kwargs)
        off_by = self.off_by * self.accelerator.process_index
        return completions, [[value + off_by for value in of_row] for of_row in log_probs]


def fingerprint(trainer) -> dict[str, float]:
    """Norms of some weights, gathered where they are sharded."""
    norms = {}
    for name, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        if "patch_embed" in name or "layers.0" in name:
            if hasattr(parameter, "ds_id"):
                import deepspeed

                with deepspeed.zero.GatheredParameters([parameter]):
                    norms[name] = parameter.data.double().norm().item()
            else:
                norms[name] = parameter.data.double().norm().item()
    return norms


def run(settings: dict, name: str) -> dict:
    """Trains as one of the runs says."""
    config = dict(settings["runs"][name])
    canned, text_only, off_by = config.pop("canned"), config.pop("text_only"), config.pop("off_by", None)
    args = GRPOConfig(**config)
    processor = load_processor(settings["model"], max_pixels=settings["max_pixels"])
    agents = described_agents(settings["agents"])
    rows = load_rows(settings["data"], "train", agents)
    for number in text_only:
        rows[number]["images"] = []
    trainer = (CannedTrainer if canned else GRPOTrainer if off_by is None else OffTrainer)(
        settings["model"],
        mean_token,
        args=args,
        train_dataset=to_dataset(rows, image_reader(processor)),
        processing_class=processor,
    )
    if off_by is not None:
        trainer.off_by = off_by
        try:
            trainer.train()
        except SamplingDifferenceError as error:
            return {"error": str(error)}
    trainer.train()
    figures = {"weights": fingerprint(trainer)}
    for key in ("loss", "grad_norm", "reward", "kl"):
        figures[key] = [entry[key] for entry in trainer.state.log_history if key in entry]
    last = trainer.engine.decoding.last
    figures["forwards"] = gather_object([None if last is None else last.counts.forwards])
    if not canned:
        trainer.save_model(args.output_dir)
    return figures


if __name__ == "__main__":
    run_all(run)
