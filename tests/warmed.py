"""What the process that forks has loaded before the first command (see `warm`).

The page is not in it: gradio reads its variables once, when it is imported.
"""

import gc
import os

import pytest  # noqa: F401

from pipelines.memory.planning import before_torch

before_torch()

import app.cli.main  # noqa: E402, F401
import pipelines.engine  # noqa: E402, F401
import training.loop.trainer  # noqa: E402, F401

# The collector of a fork need not look at it, which would copy every page of it.
gc.freeze()
# Each command opens its own; what libraries say when this process ends is of no interest.
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
