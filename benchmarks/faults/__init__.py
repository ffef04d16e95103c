"""A fault suite: breaks sweeps on purpose and judges, from a witness's account, what the platform made of it."""
