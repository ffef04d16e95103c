"""What is measured of the stages while they are trained, and of their ensemble when one has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pharos.learner import Learner
from pharos.run import Run
from trainables.ads_unet.boosting import Boosting, vote
from trainables.common.histology.cost import saved_activations
from trainables.common.histology.data import Tissue, unit
from trainables.common.histology.evaluation import Viewer, similarity
from trainables.common.histology.metrics import scores
from trainables.common.histology.pictures import draw_segmentation
from trainables.common.segmentation import IGNORED, mean_iou

_VOTES = ("soft", "mean", "hard")
_SHOWN = 4


class Judge:
    """Measures stages and remembers the best weights of the present one.

    Args:
        run: Whose state remembers.
        tissue: The data.
        boosting: Votes and weights.
        how: Of `vote`.
        heads: The head that speaks for each ended stage; none: all of them.
        batch_size: Images at a time.
    """

    def __init__(
        self,
        run: Run,
        tissue: Tissue,
        boosting: Boosting,
        *,
        how: str,
        heads: Callable[[], Sequence[int]],
        batch_size: int,
    ):
        self._run, self._tissue, self._boosting = run, tissue, boosting
        self._how, self._heads = how, heads
        self._viewer = Viewer(run, tissue.mean, tissue.std, batch_size)
        self._classes = len(tissue.classes)

    def stage(self, learner: Learner, stage: int) -> dict[str, float]:
        """The last stage on the validation set, and what the ended ones scored together.

        Before the first stage has ended, it stands for the ensemble: a score of one stage is compared with no other's.
        """

        def predict(x: Tensor) -> Tensor:
            classes: Tensor = learner(x, stages=[stage + 1]).argmax(dim=2)
            return classes

        matrix = self._viewer.confusions(predict, self._tissue.validation, self._classes)[0]
        miou = mean_iou(matrix)
        return {"val/stage_miou": miou, "val/miou": self._run.state.get("miou", miou)}

    def keep_best(self, learner: Learner, stage: int, score: float) -> None:
        """Remembers the weights if they are the best of this stage."""
        best = self._run.state.get("best")
        if best is None or best["stage"] != stage or score > best["score"]:
            self._run.state["best"] = {"stage": stage, "score": score, "network": learner.weights()}

    def end_stage(self, learner: Learner, stage: int) -> dict[str, float]:
        """Re-weights the samples by what the stage makes of them without augmentation, and scores the ensemble."""
        matrices = self._viewer.confusions(
            lambda x: learner(x, want="heads").argmax(dim=2), self._tissue.validation, self._classes
        )
        # At full resolution: training losses favour low ones, whose targets are blurred.
        head = max(range(len(matrices)), key=lambda k: mean_iou(matrices[k]))
        self._boosting.end_stage(self._quality(learner, stage), head)
        matrix = self._viewer.confusions(self._ensemble(learner), self._tissue.validation, self._classes)[0]
        found = {f"val/{name}": value for name, value in scores(matrix).items()}
        self._run.state["miou"] = found["val/miou"]
        return found | {
            "boosting/error": self._boosting.errors[-1],
            "boosting/alpha": self._boosting.alphas[-1],
            "saved_mib": max(value for name, value in self._run.state.items() if name.startswith("saved/")),
            **self._hardness(),
        }

    def finish(self, learner: Learner) -> dict[str, float]:
        """The test set: the ensemble, each stage, each way to vote; how alike the top nodes are; a picture."""
        test, stages = self._tissue.test, len(self._boosting.alphas)
        speakers: dict[str, Sequence[int]] = {"head_eta": (), "head_best": self._boosting.heads}

        def predict(x: Tensor) -> Tensor:
            asked = learner(x, heads=self._heads())
            votes = [vote(asked, self._boosting.alphas, how) for how in (self._how, *_VOTES)]
            by_heads = [vote(learner(x, heads=heads), self._boosting.alphas, self._how) for heads in speakers.values()]
            return torch.stack([each.argmax(dim=1) for each in (*votes, *by_heads, *asked)])

        ensemble, *others = self._viewer.confusions(predict, test, self._classes)
        found = {f"test/{name}": value for name, value in scores(ensemble, self._tissue.classes).items()}
        names = [*(f"vote_{how}" for how in _VOTES), *speakers, *(f"stage{d}" for d in range(1, stages + 1))]
        found |= {f"test/{name}": mean_iou(matrix) for name, matrix in zip(names, others, strict=True)}
        # The same pictures on every worker: too few to be divided.
        x = self._viewer.seen(test.images[:_SHOWN])
        self._run.log_image(
            "segmentation",
            draw_segmentation(
                unit(test.images[:_SHOWN]), test.masks[:_SHOWN], self._ensemble(learner)(x)[0].to(torch.uint8).cpu()
            ),
        )
        nodes = learner(self._viewer.seen(test.images), want="nodes")
        return found | {"cka": similarity([node.cpu() for node in nodes])}

    @contextlib.contextmanager
    def measuring(self, network: nn.Module, stage: int) -> Iterator[None]:
        """Counts, at the first call in a stage, what its forward pass keeps for the backward pass."""
        name = f"saved/{stage + 1}"
        if name in self._run.state:
            yield
            return
        with saved_activations(network.parameters()) as saved:
            yield
        self._run.state[name] = saved.mib

    def _ensemble(self, learner: Learner) -> Callable[[Tensor], Tensor]:
        def predict(x: Tensor) -> Tensor:
            return vote(learner(x, heads=self._heads()), self._boosting.alphas, self._how).argmax(dim=1)[None]

        return predict

    def _quality(self, learner: Learner, stage: int) -> Tensor:
        """m of each training image (N,), or whether each pixel is right (N, H, W); an ignored one is."""
        train = self._tissue.train

        def predict(x: Tensor) -> Tensor:
            classes: Tensor = learner(x, stages=[stage + 1])[0].argmax(dim=1)
            return classes

        if self._boosting.weights.dim() == 1:
            return self._viewer.image_ious(predict, train, self._classes)
        right = []
        for places in self._viewer.each(len(train)):
            masks = train.masks[places].cpu()
            right.append((predict(self._viewer.seen(train.images[places])).cpu() == masks) | (masks == IGNORED))
        return torch.cat(right).double()

    def _hardness(self) -> dict[str, float]:
        """Whether what weighs more is harder: Spearman's rank correlation with how hard the scenes were made."""
        weights, difficulty = self._boosting.weights, self._tissue.train.difficulty
        if weights.dim() > 1 or bool(weights.std() == 0) or bool(difficulty.std() == 0):
            return {}
        ranks = torch.stack([values.argsort().argsort().double() for values in (weights, difficulty)])
        return {"boosting/hardness": float(torch.corrcoef(ranks)[0, 1])}


class Layers:
    """The loss and the weight of each supervised layer, averaged over an epoch."""

    def __init__(self) -> None:
        self._sum = torch.zeros(())
        self._count = 0

    def add(self, losses: Tensor, weights: Tensor) -> None:
        """Takes up one step's, (n,) each, deepest first."""
        self._sum = self._sum.to(losses.device) + torch.stack([losses, weights])
        self._count += 1

    def means(self) -> dict[str, float]:
        """By level: 0 is full resolution."""
        losses, weights = (self._sum / self._count).tolist()
        last = len(losses) - 1
        return {
            **{f"head/level{last - k}": value for k, value in enumerate(losses)},
            **{f"eta/level{last - k}": value for k, value in enumerate(weights)},
        }
