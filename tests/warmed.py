"""What the process that forks has loaded before the first command (see `warm`).

The page is not in it: gradio reads its variables once, when it is imported.
"""

import gc
import os

import pytest  # noqa: F401

from pipelines.heavy_imports import importing_diffusers

with importing_diffusers():
    import app.cli.main  # noqa: F401
    import pipelines.engine  # noqa: F401
    import training.loop.trainer  # noqa: F401

# The collector of a fork need not look at it, which would copy every page of it.
gc.freeze()
# Each command opens its own; what libraries say when this process ends is of no interest.
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
