"""GRPO that a reward model rewards, on one process or more, for test_grpo_reward_model.py.

Gives rewards, losses, a few weights, and how the reward model's weights lay on the main process.

    python tests/helpers/workers/reward_model_worker.py SETTINGS.json...

Settings (worker_main.py): model, reward_model, data (folders), agents, runs (name -> settings of GRPOConfig, and
`sharded`).
"""

from distribution_worker import CannedTrainer, fingerprint
from worker_main import run_all

from data.tasks import load_rows
from filter_agents.registry import described_agents
from models.families.loading import image_reader, load_processor
from rewards.registry import build_rewards
from trainers.grpo import GRPOConfig
from trainers.setup.task_data import to_dataset


def run(settings: dict, name: str) -> dict:
    """Trains as one of the runs says."""
    config = dict(settings["runs"][name])
    entry = {
        "name": "reward_model",
        "model": settings["reward_model"],
        "batch_size": 3,
        "sharded": config.pop("sharded"),
    }
    rewards = build_rewards([entry])
    args = GRPOConfig(**config)
    processor = load_processor(settings["model"], max_pixels=1024)
    agents = described_agents(settings["agents"])
    rows = load_rows(settings["data"], "train", agents)
    trainer = CannedTrainer(
        settings["model"],
        rewards,
        args=args,
        train_dataset=to_dataset(rows, image_reader(processor)),
        processing_class=processor,
    )
    trainer.train()
    judge = rewards[0].function._loaded
    figures = {
        "weights": fingerprint(trainer),
        "partitioned": [hasattr(parameter, "ds_id") for parameter in judge.parameters()],
        "numbers": sum(parameter.numel() for parameter in judge.parameters()),
        "trained": [name for name, parameter in judge.named_parameters() if parameter.requires_grad],
    }
    for key in ("loss", "reward", "rewards/reward_model/mean", "rewards/reward_model/std"):
        figures[key] = [entry[key] for entry in trainer.state.log_history if key in entry]
    return figures


if __name__ == "__main__":
    run_all(run)
