"""How well a network does on a data set that the workers share, and how alike its features are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pharos.run import Run
from trainables.common.histology.data import Tiles, standardised, unit
from trainables.common.histology.metrics import image_iou, linear_cka
from trainables.common.segmentation import confusion

_POSITIONS = 4096  # of feature maps that are compared, at most


class Viewer:
    """Shows a data set to a network, a share of it on each worker.

    All workers see the same number of batches, because under ZeRO 3 each forward pass takes all of them.

    Args:
        run: Whose workers.
        mean: Of the training images, (3,).
        std: The same.
        batch_size: Images at a time.
    """

    def __init__(self, run: Run, mean: Tensor | Sequence[float], std: Tensor | Sequence[float], batch_size: int):
        self._run, self._mean, self._std, self._batch_size = run, mean, std, batch_size

    def seen(self, images: Tensor) -> Tensor:
        """What a network is given of uint8 images (B, 3, H, W)."""
        return standardised(unit(images.to(self._run.device)), self._mean, self._std)

    def confusions(
        self, predict: Callable[[Tensor], Tensor], tiles: Tiles, classes: int, within: Tensor | None = None
    ) -> Tensor:
        """Confusion matrices of a data set, the same on all workers.

        Args:
            predict: (V, B, H, W) classes, in V ways, of what a network is given (B, 3, H, W).
            tiles: The data set.
            classes: K.
            within: (H, W) pixels that count; None: all.

        Returns:
            (V, K, K).
        """
        total: Tensor | None = None
        for index, is_first in self._shares(len(tiles)):
            predicted = predict(self.seen(tiles.images[index])).cpu()[:, is_first]
            masks = tiles.masks[index][is_first].cpu()
            if within is not None:
                masks = torch.where(within, masks, 255)
            found = torch.stack([confusion(each, masks, classes) for each in predicted])
            total = found if total is None else total + found
        assert total is not None
        return self._summed(total)

    def image_ious(self, predict: Callable[[Tensor], Tensor], tiles: Tiles, classes: int) -> Tensor:
        """IoU of each image over the classes in its truth (N,), the same on all workers.

        Args:
            predict: (B, H, W) classes of what a network is given (B, 3, H, W).
            tiles: The data set.
            classes: K.
        """
        found = torch.zeros(len(tiles), dtype=torch.float64)
        for index, is_first in self._shares(len(tiles)):
            quality = image_iou(predict(self.seen(tiles.images[index])).cpu(), tiles.masks[index].cpu(), classes)
            found[index[is_first]] = quality[is_first]
        return self._summed(found)

    def each(self, count: int) -> Iterator[Tensor]:
        """The places of all images, in batches, on every worker alike."""
        yield from torch.arange(count).split(self._batch_size)  # type: ignore[no-untyped-call]

    def _shares(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of places (B,) of this worker's share, and which of them are no repetition (B,)."""
        size = self._run.world_size
        places = torch.arange(self._run.rank, -(-count // size) * size, size)
        for batch in places.split(self._batch_size):  # type: ignore[no-untyped-call]
            yield batch % count, batch < count

    def _summed(self, values: Tensor) -> Tensor:
        means = self._run.mean({str(k): value for k, value in enumerate(values.flatten().tolist())})
        return torch.tensor(list(means.values()), dtype=torch.float64).reshape(values.shape) * self._run.world_size


def similarity(features: Sequence[Tensor]) -> float:
    """Mean linear CKA of all pairs of feature maps, 1 where all are the same up to rotation and scale.

    Args:
        features: (B, c, h, w) of each node; they are pooled to the smallest size, and at most 4096 positions compared.
    """
    if len(features) < 2:
        return 1.0
    side = min(node.shape[-1] for node in features)
    rows = [functional.adaptive_avg_pool2d(node.float(), side).movedim(1, -1).flatten(0, 2) for node in features]
    step = max(1, len(rows[0]) // _POSITIONS)
    rows = [row[::step] for row in rows]
    pairs = [(a, b) for a in range(len(rows)) for b in range(a)]
    return sum(linear_cka(rows[a], rows[b]) for a, b in pairs) / len(pairs)
