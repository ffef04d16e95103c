"""RSESF."""
