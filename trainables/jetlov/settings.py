"""The settings of a trial; defaults are the values of the authors' code at the time of the paper.

Section 6 of the reference notes on JetLOV (arXiv 2311.14654).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pharos.errors import InputError
from pharos.learner import OptimConfig
from trainables.common.settings import Checked
from trainables.jetlov.declustering import ALGORITHMS, Cuts

SOURCES = ("toy", "shards", "lundnet", "toptagging", "jetclass", "npz")
TASKS = ("w", "top", "qg")

LUND_COLUMNS = {
    "lund5": [0, 1, 2, 3, 4],
    "lund4": [0, 1, 4, 2],
    "lund3": [0, 1, 4],
    "lund2": [1, 4],
}
"""Which Lund variables, in the order of the public networks."""
FEATURES = ("lov", *LUND_COLUMNS, "raw8")


@dataclass
class JetDataConfig(Checked):
    """Which jets, and what becomes a node of their trees."""

    where = "recipe.data"

    source: str = "lundnet"
    """lundnet (json.gz files of JetsGame/data), toptagging (HDF5 or parquet), jetclass (ROOT), npz (pt, y, phi, pdgid),
    shards (what `python -m trainables.jetlov.generate` makes); built in: toy (a shower in numpy)."""
    root: str = ""
    """Folder of the files, a path or URL; toy needs none."""
    task: str = "w"
    """Signal and background: w (W against QCD), top (top against QCD), qg (quarks against gluons)."""
    domains: str = "nominal"
    """Where the jets that are trained on come from, joined by '+', such as nominal+mpi: equally many from each."""
    others: str = ""
    """Domains that the trained network is tried on beside its own, joined by '+'."""
    train: int = 0
    """Jets of each class to train on, shared by the domains; 0: all that there are (toy: 10,000)."""
    val: int = 0
    """The same of the validation, from each domain (toy: 2,000)."""
    test: int = 0
    """The same of the test (toy: 5,000)."""
    seed: int = 0
    """Of the toy shower, and of which jets are taken where not all are."""
    kt_min: float = 0.0
    """GeV: softer splittings are no nodes; 0: all are."""
    delta_min: float = 0.0
    """Splittings narrower than this angle end their branch; 0: none does."""
    algorithm: str = "CA"
    """How jets are reclustered: CA, kt or antikt."""
    secondary: bool = True
    """Whether softer branches are followed, too; false: the primary plane alone."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        self.check_choices(source=SOURCES, task=TASKS, algorithm=tuple(ALGORITHMS))
        self.check_least(0, "train", "val", "test", "kt_min", "delta_min")
        if not self.trained:
            raise InputError("recipe.data.domains: names at least one, such as nominal")
        if double := sorted({name for name in self.all_domains if self.all_domains.count(name) > 1}):
            raise InputError(f"recipe.data.domains and others: {double[0]} is named twice")

    @property
    def trained(self) -> list[str]:
        """The domains that are trained on."""
        return _names(self.domains)

    @property
    def all_domains(self) -> list[str]:
        """Those and the others."""
        return self.trained + _names(self.others)

    @property
    def cuts(self) -> Cuts:
        """What becomes a node."""
        return Cuts(self.kt_min, self.delta_min, self.algorithm, self.secondary)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split("+") if name.strip()]


@dataclass
class ModelConfig(Checked):
    """Which network."""

    where = "recipe.model"

    features: str = "lov"
    """What LundNet is given of a splitting: lov (variables that RegNet makes of the raw momenta: JetLOV), lund5, lund4,
    lund3, lund2 (Lund variables), raw8 (the raw momenta themselves)."""
    n_vars: int = 5
    """lov: how many variables; any but 5 takes init=scratch."""
    raw_form: str = "ptetaphim"
    """lov, raw8: ptetaphim, pxpypzE, or relative_log (angles relative to the jet, logarithms)."""
    regnet_kind: str = "branched"
    """branched (a network for each variable, as in the paper) or shared (the later code's)."""
    regnet_hidden: int = 128
    """Width of RegNet."""
    regnet_depth: int = 2
    """Hidden layers of RegNet; two of five branches have one less."""
    regnet_dropout: float = 0.0
    """After each hidden layer of RegNet; the later code's shared one has 0.1."""
    regnet_frozen: bool = False
    """Whether RegNet stays as it was pre-trained: a test of what end-to-end training adds."""
    width: int = 32
    """Channels of the first pair of blocks; each further pair has twice as many."""
    blocks: int = 6
    """EdgeConv blocks."""
    fc_hidden: int = 256
    """Width of the head."""
    fc_dropout: float = 0.1
    """In the head."""
    use_fusion: bool = True
    """Whether the outputs of all blocks are brought together before the mean over nodes."""
    weights: str = ""
    """Path or URL of trained weights to start from: LundNet's, RegNet's or both (state dict or safetensors; the public
    files' names are known). Replaces the pre-training of what it has."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        self.check_choices(
            features=FEATURES,
            raw_form=("ptetaphim", "pxpypzE", "relative_log"),
            regnet_kind=("branched", "shared"),
        )
        self.check_least(1, "n_vars", "regnet_hidden", "regnet_depth", "width", "blocks", "fc_hidden")
        self.check_range(0, 0.9, "regnet_dropout", "fc_dropout")

    @property
    def channels(self) -> list[int]:
        """Of each block."""
        return [self.width * 2 ** (index // 2) for index in range(self.blocks)]

    def inputs(self, features: str) -> int:
        """How many features a node has."""
        return {"lov": self.n_vars, "raw8": 8}.get(features) or len(LUND_COLUMNS[features])


def _adam(gamma: float, milestones: list[float], *, amsgrad: bool) -> OptimConfig:
    return OptimConfig(lr=1e-3, amsgrad=amsgrad, schedule="steps", gamma=gamma, milestones=milestones)


@dataclass
class RegressConfig(Checked):
    """Stage R: RegNet learns the Lund variables (section 4.1)."""

    where = "recipe.regress"

    epochs: int = 100
    """Passes over its nodes."""
    optim: OptimConfig = field(default_factory=lambda: _adam(0.1, [0.5, 0.8], amsgrad=True))
    """Of RegNet."""
    nodes: int = 256
    """Splittings a step, over all workers; the authors' 4 jets have about as many."""
    train: int = 50_000
    """Jets of the training set that are used, at most."""
    val: int = 5_000
    """Of the validation set."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        self.check_least(1, "epochs", "train", "val")
        self.check_least(2, "nodes")


@dataclass
class PretrainConfig(Checked):
    """Stage T: LundNet learns to tag by the five Lund variables (section 4.2)."""

    where = "recipe.pretrain"

    epochs: int = 30
    """Passes over the training jets."""
    optim: OptimConfig = field(default_factory=lambda: _adam(0.1, [1 / 3, 2 / 3], amsgrad=False))
    """Of LundNet."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        self.check_least(1, "epochs")


@dataclass
class JetlovConfig(Checked):
    """Defaults are those of the authors' code at the time of the paper."""

    data: JetDataConfig = field(default_factory=JetDataConfig)
    """Which jets."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network."""
    init: str = "pretrained"
    """lov: what training end to end starts from: pretrained (RegNet by stage R, LundNet by stage T: the paper's way),
    regnet_only (RegNet by stage R), scratch."""
    regress: RegressConfig = field(default_factory=RegressConfig)
    """Stage R."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Stage T."""
    optim: OptimConfig = field(default_factory=lambda: _adam(0.5, [1 / 3, 2 / 3], amsgrad=True))
    """Of stage C, and of a LundNet without RegNet; such a one was published with gamma=0.1 and no amsgrad."""
    regnet_lr_mult: float = 1.0
    """How much faster than LundNet RegNet learns in stage C."""
    epochs: int = 30
    """Passes over the training jets in stage C."""
    batch_size: int = 256
    """Jets a step, over all workers."""
    keep: str = "accuracy"
    """Which epoch's network is kept: that of the best validation accuracy, of the best auc, or the last one."""

    def __post_init__(self) -> None:
        """Checks what the parts do not.

        Raises:
            InputError: A value is impossible.
        """
        self.check_choices(init=("pretrained", "regnet_only", "scratch"), keep=("accuracy", "auc", "last"))
        self.check_least(1, "epochs")
        self.check_least(2, "batch_size")
        self.check_least(1e-6, "regnet_lr_mult")
        model = self.model
        if model.features != "lov":
            return
        if self.init != "scratch" and model.n_vars != 5:
            raise InputError(
                f"recipe.model.n_vars={model.n_vars}: recipe.init={self.init} begins with the five Lund variables; "
                "take n_vars=5 or init=scratch"
            )
        if model.regnet_frozen and self.init == "scratch" and not model.weights:
            raise InputError("recipe.model.regnet_frozen: with recipe.init=scratch RegNet would never learn anything")

    def stages(self, loaded: list[str]) -> list[str]:
        """What is trained before stage C: R, T, both or nothing.

        Args:
            loaded: Parts whose weights were given: regnet, lundnet.
        """
        if self.model.features != "lov":
            return []
        wanted = {"pretrained": "RT", "regnet_only": "R", "scratch": ""}[self.init]
        return [stage for stage in wanted if {"R": "regnet", "T": "lundnet"}[stage] not in loaded]
