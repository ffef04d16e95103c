"""What the claims of families with branches of scale have in common: the grid of magnifications and orientations."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.claims import Results, interval, mean_and_spread, table

# What the grid is reported by, see `trainables.common.histology.grid`.
_COLUMNS = {
    "test/miou": "as trained",
    "test/scales_miou": "other scales",
    "test/rotations_miou": "other rotations",
    "test/both_miou": "both",
    "test/grid_miou": "whole grid",
    "test/grid_min": "worst cell",
}
_SCALES = ("0.5", "0.71", "1", "1.41", "2")
_ANGLES = ("0", "22.5", "45", "90", "180")


class GridTable:
    """The runs as columns of numbers over seeds.

    Args:
        results: By variant and seed.
        options: Of `claims.read_options`.
        titles: Of the variants; the first is the family, with which the others are compared.
    """

    def __init__(self, results: Results, options: argparse.Namespace, titles: Mapping[str, str]):
        self._results = results
        self._seeds = range(options.seeds)
        self._titles = {name: title for name, title in titles.items() if (name, 0) in results}

    def column(self, variant: str, metric: str) -> list[float]:
        """One metric of a variant, by seed."""
        return [float(self._results[variant, seed]["metrics"][metric]) for seed in self._seeds]

    def accuracy(self) -> str:
        """mIoU in per cent by part of the grid, parameters and seconds."""
        head = ["mIoU, %", *_COLUMNS.values(), "parameters", "seconds"]
        rows = []
        for name, title in self._titles.items():
            cells = [mean_and_spread(_percent(self.column(name, metric))) for metric in _COLUMNS]
            seconds = statistics.mean(self._results[name, seed]["seconds"] for seed in self._seeds)
            rows.append([title, *cells, f"{self.column(name, 'parameters')[0]:,.0f}", f"{seconds:.0f}"])
        return table(head, rows)

    def differences(self) -> str:
        """The family against each other variant, paired by seed: points, 95 % interval, seeds in which it is better."""
        ours, *others = self._titles
        head = [f"{self._titles[ours]} against, points", *_COLUMNS.values()]
        rows = []
        for other in others:
            cells = []
            for metric in _COLUMNS:
                pairs = zip(self.column(ours, metric), self.column(other, metric), strict=True)
                points = [100 * (a - b) for a, b in pairs]
                low, high = interval(points)
                wins = f"{sum(p > 0 for p in points)}/{len(points)}"
                cells.append(f"{statistics.mean(points):+.1f} [{low:+.0f}, {high:+.0f}], {wins}")
            rows.append([self._titles[other], *cells])
        return table(head, rows)

    def curves(self) -> str:
        """mIoU in per cent by magnification (mean over orientations), and by orientation (mean over magnifications)."""
        head = ["mIoU, %", *(f"s = {scale}" for scale in _SCALES), *(f"{angle}°" for angle in _ANGLES)]
        rows = []
        for name, title in self._titles.items():
            grid = self.grid(name)
            by_scale = [statistics.mean(row) for row in grid]
            by_angle = [statistics.mean(column) for column in zip(*grid, strict=True)]
            rows.append([title, *(f"{value:.1f}" for value in (*by_scale, *by_angle))])
        return table(head, rows)

    def ways(self, names: Mapping[str, str]) -> str:
        """The family's same weights, used in other ways.

        Args:
            names: Titles of `test/<way>/...`; that of "" is the way it is used in the other tables.
        """
        ours = next(iter(self._titles))
        columns = [metric for metric in _COLUMNS if metric.endswith("_miou") and metric != "test/miou"]
        rows = []
        for way, title in names.items():
            metrics = [f"test/{way}/{metric.removeprefix('test/')}" if way else metric for metric in columns]
            rows.append([title, *(mean_and_spread(_percent(self.column(ours, metric))) for metric in metrics)])
        return table(["mIoU, %, of the same weights", *(_COLUMNS[metric] for metric in columns)], rows)

    def grid(self, variant: str) -> list[list[float]]:
        """mIoU in per cent, mean over seeds: rows are magnifications, columns orientations."""
        return [
            [100 * statistics.mean(self.column(variant, f"test/s{scale}_r{angle}")) for angle in _ANGLES]
            for scale in _SCALES
        ]

    def picture(self, path: str) -> None:
        """Writes the grids of all variants side by side, as heat maps."""
        from PIL import Image, ImageDraw, ImageFont

        cell, left, top, gap = 54, 58, 64, 26
        width = left + len(self._titles) * (5 * cell + gap)
        image = Image.new("RGB", (width, top + 5 * cell + 14), "white")
        draw = ImageDraw.Draw(image)
        font, small = ImageFont.load_default(15), ImageFont.load_default(13)
        grids = {name: self.grid(name) for name in self._titles}
        low = min(value for grid in grids.values() for row in grid for value in row)
        high = max(value for grid in grids.values() for row in grid for value in row)
        for number, (name, title) in enumerate(self._titles.items()):
            x0 = left + number * (5 * cell + gap)
            draw.text((x0, 8), title, fill="black", font=font)
            for column, angle in enumerate(_ANGLES):
                place = (x0 + (column + 0.5) * cell, top - 8)
                draw.text(place, f"{angle}°", fill="black", font=small, anchor="mb")
            for row, scale in enumerate(_SCALES):
                if number == 0:
                    beside = (left - 8, top + (row + 0.5) * cell)
                    draw.text(beside, f"s = {scale}", fill="black", font=small, anchor="rm")
                for column in range(5):
                    value = grids[name][row][column]
                    share = (value - low) / max(1e-9, high - low)
                    corner = (x0 + column * cell, top + row * cell)
                    box = (*corner, corner[0] + cell - 2, corner[1] + cell - 2)
                    draw.rectangle(box, fill=_colour(share))
                    ink = "white" if share < 0.5 else "black"
                    middle = (corner[0] + cell / 2 - 1, corner[1] + cell / 2 - 1)
                    draw.text(middle, f"{value:.0f}", fill=ink, font=font, anchor="mm")
        image.save(path)


# From low to high, evenly spaced: dark violet, blue, green, yellow; lightness grows with the value.
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def _colour(share: float) -> tuple[int, ...]:
    place = min(max(share, 0.0), 1.0) * (len(_COLOURS) - 1)
    below = min(int(place), len(_COLOURS) - 2)
    part = place - below
    pairs = zip(_COLOURS[below], _COLOURS[below + 1], strict=True)
    return tuple(round((1 - part) * a + part * b) for a, b in pairs)


def _percent(values: Sequence[float]) -> list[float]:
    return [100 * value for value in values]
