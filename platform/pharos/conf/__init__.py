"""The settings of a sweep, as Hydra groups; each file says what its values are for."""
