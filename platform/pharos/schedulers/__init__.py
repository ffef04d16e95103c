"""When to stop a trial early, pause it, or start one from another's checkpoint.

Ours instead of Ray Tune's: they serve the local backend too, are rebuilt from the study on a resume, compare trials
only at equal fidelity, and give their reasons.
"""
