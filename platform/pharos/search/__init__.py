"""What a search decides from, and with: objectives, encodings, samplers, evidence, limits. Runs no trial."""
