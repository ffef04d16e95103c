"""The picture of the rounds: where weights lie in it, and which are fixed."""

import numpy as np
import torch

from trainables.wfn.pictures import count_columns, draw_rounds


def test_columns_hold_every_weight_once_and_keep_signs_and_order():
    weights = (0.1 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    mask = np.abs(weights) > 0.1
    counts = count_columns(weights, mask)
    assert counts.sum(dim=1).tolist() == [(~mask).sum(), mask.sum()]
    half = counts.shape[1] // 2
    assert counts[:, :half].sum() == (weights < 0).sum()
    places = [
        int(count_columns(np.array([w], np.float32), np.array([True]))[1].argmax()) for w in (-0.5, -0.01, 0, 0.02, 0.9)
    ]
    assert places == sorted(places)
    assert len(set(places)) == 5


def test_free_weights_are_grey_and_fixed_ones_blue():
    weights = np.full(100, 0.25, np.float32)
    free, fixed = (draw_rounds([count_columns(weights, np.full(100, flag))]) for flag in (False, True))
    assert free.shape == fixed.shape
    assert float(free.min()) >= 0
    assert float(free.max()) <= 1
    differs = (free != fixed).any(dim=0)
    columns = differs[:, 60:].any(dim=0).nonzero()  # beside the share, which is written on the left
    assert len(columns) == 1
    row, column = differs[:, 60:].any(dim=1).nonzero()[-1, 0], 60 + columns[0, 0]
    assert free[:, row, column].tolist() == torch.tensor([0.72, 0.72, 0.74]).tolist()
    assert fixed[2, row, column] > 2 * fixed[0, row, column]
    several = draw_rounds([count_columns(weights, np.full(100, True))] * 3)
    assert several.shape[1] > 2 * fixed.shape[1] - 30
