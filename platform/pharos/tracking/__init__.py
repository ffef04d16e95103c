"""Where trials are shown: Weights & Biases, from each trial's own process, and the sweep's page there."""

import os

# W&B's reports of its own errors: they go the same way, and hold up the end of a process when that is shut.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
