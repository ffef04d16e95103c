"""What is reported of a network: accuracies, and at the end what its masks, layers and units are.

Source: section 5 of the reference notes on DBAT.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pharos.learner import Learner
from pharos.run import Run
from trainables.common.materials.evaluation import confusion_over, scores
from trainables.common.materials.scenes import Scenes
from trainables.dbat.analysis import Alignment, dissected, spearman
from trainables.dbat.data import Materials, Samples, concepts
from trainables.dbat.model import centred
from trainables.dbat.pictures import draw_alignment, draw_attention, draw_detectors

_LOOKED_AT = 64  # images of the test whose layers are kept
_SHOWN = 4  # of them in the picture of the masks
_ALIGNED = 4  # the fewest in a batch whose layers can be compared


class Judge:
    """Judges a network on a source's images.

    Args:
        run: For the device and pictures.
        materials: All splits.
        side: S of crops and tiles.
        batch: Images at a time.
        is_matscale: Whether the classes are pairs of periods, which a dissection may look for one by one.
    """

    def __init__(self, run: Run, materials: Materials, *, side: int, batch: int, is_matscale: bool):
        self._run = run
        self._materials = materials
        self._side = side
        self._batch = batch
        self._is_matscale = is_matscale

    def validation(self, learner: Learner) -> dict[str, float]:
        """`val/pixel_acc` and so on."""
        return self._scores(learner, self._materials.validation, "val/")

    def test(self, learner: Learner) -> dict[str, float]:
        """`test/pixel_acc` and so on, and the analyses with their pictures."""
        return self._scores(learner, self._materials.test, "test/") | self._look(learner)

    def _scores(self, learner: Learner, samples: Samples, prefix: str) -> dict[str, float]:
        classes = len(self._materials.classes)
        matrix = confusion_over(
            lambda images: learner(centred(images)),
            samples,
            classes=classes,
            side=self._side,
            batch=self._batch,
            device=self._run.device,
        )
        return scores(matrix, prefix)

    def _look(self, learner: Learner) -> dict[str, float]:
        """The masks' shares, the alignment of the layers and, of generated scenes, what units detect."""
        images, labels = self._squares()
        alike = Alignment()
        masks, deepest, predicted = [], [], []
        batch = max(_ALIGNED, self._batch)
        for start in range(0, len(images), batch):
            some = images[start : start + batch]
            logits, look = learner(centred(some.to(self._run.device).float() / 255), with_look=True)
            predicted.append(logits.argmax(dim=1).cpu())
            deepest.append(list(look.layers.values())[-1].float().cpu())
            if look.masks is not None:
                masks.append(look.masks.float().cpu())
            if len(some) >= _ALIGNED:
                alike.add(look.layers)
        found: dict[str, float] = {}
        shares = torch.cat(masks) if masks else None
        if shares is not None:
            found |= self._attention(shares)
        if self._run.rank == 0 and len(images) >= _ALIGNED:
            self._run.log_image("alignment", draw_alignment(*alike.result()))
        if self._run.rank == 0:
            classes = len(self._materials.classes)
            part = slice(0, _SHOWN)
            picture = draw_attention(
                images[part],
                labels[part],
                torch.cat(predicted)[part],
                None if shares is None else shares[part],
                classes,
            )
            self._run.log_image("attention", picture)
        if isinstance(self._materials.test, Scenes):
            found |= self._dissect(self._materials.test, torch.cat(deepest))
        return found

    def _squares(self) -> tuple[Tensor, Tensor]:
        """The first images of the test, their middles cut out: (n, 3, S, S) and labels (n, S, S), uint8."""
        count = min(_LOOKED_AT, len(self._materials.test))
        pairs = self._materials.test.read_many(range(count))
        cut = []
        for image, label in pairs:
            top, left = ((length - self._side) // 2 for length in label.shape)
            window = slice(top, top + self._side), slice(left, left + self._side)
            cut.append((image[:, window[0], window[1]], label[window]))
        return torch.stack([image for image, _ in cut]), torch.stack([label for _, label in cut])

    def _attention(self, masks: Tensor) -> dict[str, float]:
        """Mean share of each map, and whether nearer scenes are given larger patches."""
        found = {f"attention/map{k + 1}": float(share) for k, share in enumerate(masks.mean(dim=(0, 2, 3)))}
        index = torch.einsum("nkhw,k->n", masks, torch.arange(1.0, 5.0)) / masks[0, 0].numel()
        if isinstance(self._materials.test, Scenes):
            zoom = self._materials.test.zoom[: len(index)]
            if min(len(set(zoom.tolist())), len(set(index.tolist()))) > 1:
                found["attention/zoom_rank_correlation"] = spearman(index, zoom)
        return found

    def _dissect(self, scenes: Scenes, activations: Tensor) -> dict[str, float]:
        height, width = scenes.truth.shape[1:]
        if height != self._side or width != self._side:
            return {}  # the concepts are those of whole scenes
        classes = len(self._materials.classes)
        known = concepts(scenes, range(len(activations)), classes, is_matscale=self._is_matscale)
        dissection = dissected(activations, known)
        shares = dissection.detectors()
        if self._run.rank == 0:
            self._run.log_image("detectors", draw_detectors(shares))
        found = {f"detectors/{group}": share for group, share in shares.items()}
        return found | {f"iou/{group}": value for group, value in dissection.best_iou().items()}
