"""Whether W&B would take what trials report."""

from __future__ import annotations

from pharos.doctor.sheet import Finding, fail, ok
from pharos.settings import TrackingConfig

SECONDS = 25.0
_ANSWER_SECONDS = 5.0


def look(config: TrackingConfig) -> Finding:
    """Asks W&B who this is and for the project, and makes nothing there."""
    if config.name != "wandb":
        return ok("tracking=none: metrics.jsonl in each trial's folder has all")
    from pharos.tracking.wandb_run import find_project, has_key, is_online

    if not is_online(config.mode):
        why = "tracking.mode=offline" if config.mode == "offline" else "tracking.mode=auto and no key"
        return ok(f"offline ({why}): runs are spooled; report.py SWEEP --sync sends them later")
    if not has_key():
        return fail("tracking.mode=online and no key is found: set WANDB_API_KEY, or log in with: wandb login")
    found = find_project(config.entity, config.project, _ANSWER_SECONDS)
    if found.trouble:
        return fail(
            f"{found.url}: {found.trouble}; see WANDB_BASE_URL, the key and tracking.entity, "
            "or take tracking.mode=offline"
        )
    state = "is there" if found.has_project else "will be made"
    return ok(f"online at {found.url}, the key is known; project {found.entity}/{config.project} {state}")
