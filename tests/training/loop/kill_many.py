"""Kills a training with SIGKILL at random moments and compares the end: `kill_many.py [TIMES]`.

Prints at which update each kill came and whether the weights at the end are those of a training
that nobody disturbed.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.training.loop import test_kill, toy
from training.loop import checkpoint


def main(times: int) -> int:
    """Returns 0 where nothing was lost."""
    dice = random.Random()
    steps = f"steps={40 * times}"
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "cut"
        for number in range(times):
            training = test_kill.Training(cut, steps, "slow=5")
            # From before the first checkpoint to the middle of any later write.
            test_kill.until(training, 0)
            time.sleep(dice.uniform(0, 1))
            training.kill()
            newest, told = checkpoint.newest(cut / "checkpoints")
            print(f"kill {number + 1}: last whole checkpoint", newest and newest.step, told)
        test_kill.finish(test_kill.Training(cut, steps))
        straight = Path(folder) / "straight"
        test_kill.finish(test_kill.Training(straight, steps))
        config = toy.config(steps=40 * times)
        toy.assert_same(toy.open_run(straight, config), toy.open_run(cut, config))
    print(f"{times} kills: the weights are the same to the bit")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
