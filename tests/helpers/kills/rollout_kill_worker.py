"""Runs a command of this toolkit again and again, killing it at random moments, and at last lets it finish.

    python tests/helpers/kills/rollout_kill_worker.py KILLS SEED SECONDS MODULE [ARGUMENT ...]

SECONDS: how long an undisturbed run takes; each run but the last is killed at a random moment before that. Every run
leaves less to do: after one that ended by itself, the moment is drawn earlier. Prints how many runs were killed. The
runs are forked from one process, so that they need not import everything each time.
"""

import importlib
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[3])


def main() -> None:
    kills, seed, seconds, module = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    command = importlib.import_module(module)
    later = ("rollouts.frozen_vlm.answers", "rollouts.frozen_vlm.engine", "models.reward.load", "data.io.shards")
    for name in later:  # what commands import themselves, where they need it
        importlib.import_module(name)

    rng = random.Random(seed)
    killed = 0
    for attempt in range(kills + 1):
        child = os.fork()
        if child == 0:
            command.main(sys.argv[5:])
            sys.stdout.flush()
            os._exit(0)
        if attempt == kills:
            _, status = os.waitpid(child, 0)
            if status:
                sys.exit(f"the last run ended with status {status}")
            break
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            seconds *= 0.8
    print(f"killed {killed}")


if __name__ == "__main__":
    main()
