"""A reward model's training that test_reward_resume.py kills and starts again.

    python tests/trainers/reward_resume_worker.py SETTINGS.json

Settings: argv (of trainers/reward.py), kill_at and kill_during_save (resume_worker.py).
"""

import json
import sys
from pathlib import Path

from resume_worker import die_at

from trainers import reward


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    die_at(reward, settings["kill_at"], settings["kill_during_save"])
    reward.main(settings["argv"])


if __name__ == "__main__":
    main()
