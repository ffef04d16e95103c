"""Pharos: hyperparameter search and training for many model families.

A family sees `pharos.recipe`, `pharos.run` and `pharos.learner`; everything else is the platform.
"""
