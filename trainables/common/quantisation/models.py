"""The networks whose weights are quantised: from `transformers`' configurations, without a download, and a small one.

Section 3 of the reference notes on WFN (arXiv 2210.13554) and on PWFN (arXiv 2309.13575).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pharos.errors import InputError
from trainables.common.batchnorm import BatchNorm2d
from trainables.common.weights import SETTING, check_shapes, read_weights

_DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# Of the vision transformers: image, channels, patch, features, blocks, heads.
_TRANSFORMERS = {
    "deit_tiny": (224, 3, 16, 192, 12, 3),
    "deit_small": (224, 3, 16, 384, 12, 6),
    "vit_digits": (8, 1, 2, 48, 4, 3),
    "vit_glyph": (32, 3, 4, 64, 4, 4),
}
MODELS = (*_DEPTHS, *(f"{name}_c" for name in _DEPTHS), *_TRANSFORMERS, "cnn_s")


@dataclass
class ModelConfig:
    """Which network, and what it starts from."""

    name: str = "resnet18"
    """resnet18, resnet34, resnet50 (ImageNet's stem); resnet18_c, resnet34_c, resnet50_c (CIFAR's: 3x3, stride 1);
    deit_tiny, deit_small; and for small images cnn_s, vit_digits (8x8, grey), vit_glyph (32x32)."""
    width: int = 64
    """resnet*_c: channels of the first stage; cnn_s: ignored unless below 16, then of its first layer."""
    weights: str = ""
    """Path or URL of trained weights: safetensors, or a state dict of torch.save; names as transformers, torchvision
    (ResNet) or timm (ResNet, DeiT) have them."""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            InputError: One is impossible.
        """
        if self.name not in MODELS:
            raise InputError(f"recipe.model.name={self.name} must be one of {', '.join(MODELS)}")
        if self.width < 1:
            raise InputError(f"recipe.model.width={self.width} must be at least 1")


def build_model(config: ModelConfig, classes: int, image: tuple[int, int, int]) -> nn.Module:
    """A network that gives logits, (n, classes), for images, (n, channels, height, width).

    Args:
        config: Which; its weights are loaded, if it names any.
        classes: How many.
        image: Channels, height and width of the images it will be given.

    Raises:
        InputError: The images do not fit the network, or the weights do not.
    """
    network = _make(config, classes, image)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:  # several workers' batch is one batch
            module.__class__ = BatchNorm2d
    if config.weights:
        load_pretrained(network, config.weights)
    return network


def _make(config: ModelConfig, classes: int, image: tuple[int, int, int]) -> nn.Module:
    if config.name == "cnn_s":
        if image[1] % 4 or image[2] % 4:
            raise InputError(f"recipe.model.name=cnn_s halves images twice; {image[1]}x{image[2]} cannot be")
        return SmallCnn(classes, image, min(16, config.width))
    if config.name in _TRANSFORMERS:
        side, channels, *_ = _TRANSFORMERS[config.name]
        if image != (channels, side, side):
            raise InputError(
                f"recipe.model.name={config.name} takes images of {channels}x{side}x{side} (channels, height, width), "
                f"the data are {image[0]}x{image[1]}x{image[2]}"
            )
        return _vision_transformer(config.name, classes)
    return _resnet(config, classes, image[0])


class Classifier(nn.Module):
    """One of `transformers`' image classifiers, as a function of images alone."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        logits: Tensor = self.backbone(x).logits
        return logits


class SmallCnn(nn.Module):
    """`cnn_s`: three convolutions and two linear layers; 23,034 parameters on the digits.

    Args:
        classes: How many.
        image: Channels, height and width; both divisible by 4.
        width: Channels of the first convolution.
    """

    def __init__(self, classes: int, image: tuple[int, int, int], width: int = 16):
        super().__init__()
        channels, height, breadth = image
        sizes = (channels, width, 2 * width, 2 * width)
        layers: list[nn.Module] = []
        for index in range(3):
            layers.append(nn.Conv2d(sizes[index], sizes[index + 1], 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(sizes[index + 1]), nn.ReLU()]
            if index > 0:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(2 * width * (height // 4) * (breadth // 4), 4 * width)
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        hidden = torch.relu(self.hidden(self.features(x).flatten(1)))
        out: Tensor = self.classifier(hidden)
        return out


def _resnet(config: ModelConfig, classes: int, channels: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    name, is_small = config.name.removesuffix("_c"), config.name.endswith("_c")
    width = config.width if is_small else 64
    is_deep = name == "resnet50"
    settings: Any = ResNetConfig(
        num_channels=channels,
        embedding_size=width,
        hidden_sizes=[width * 2**stage * (4 if is_deep else 1) for stage in range(4)],
        depths=list(_DEPTHS[name]),
        layer_type="bottleneck" if is_deep else "basic",
        num_labels=classes,  # type: ignore[call-arg]
    )
    backbone = ResNetForImageClassification(settings)
    if is_small:  # the max-pooling behind it stays, as in the authors' code
        stem = backbone.resnet.embedder.embedder
        stem.convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(backbone)


def _vision_transformer(name: str, classes: int) -> nn.Module:
    """DeiT without a distillation token: a plain vision transformer with a class token."""
    from transformers import ViTConfig, ViTForImageClassification

    side, channels, patch, features, blocks, heads = _TRANSFORMERS[name]
    settings: Any = ViTConfig(
        image_size=side,
        num_channels=channels,
        patch_size=patch,
        hidden_size=features,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=4 * features,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        initializer_range=0.02,
        num_labels=classes,  # type: ignore[call-arg]
    )
    return Classifier(ViTForImageClassification(settings))


# Trained weights


def load_pretrained(network: nn.Module, path: str) -> None:
    """Loads a user's weights into a network; every parameter and statistic must be there and fit.

    Raises:
        InputError: The file is missing or no state dict, or does not fit the network.
    """
    weights = read_weights(path)
    # Names: as the network itself has them, those of its backbone alone, or torchvision's and timm's.
    wanted = network.state_dict()
    prefix = "backbone." if isinstance(network, Classifier) else ""
    found = {}
    for name, value in weights.items():
        for new, part in _renamed(name, value):
            found[new if new in wanted else prefix + new] = part
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(f"{SETTING}={path}: {len(missing)} tensors are missing, among them {missing[0]}")
    check_shapes(found, wanted, path)
    network.load_state_dict({name: found.get(name, value) for name, value in wanted.items()})


_RESNET_NAMES = (
    (r"^conv1\.", "resnet.embedder.embedder.convolution."),
    (r"^bn1\.", "resnet.embedder.embedder.normalization."),
    (r"^fc\.", "classifier.1."),
)
_RESNET_BLOCK = re.compile(r"^layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)$")
_VIT_NAMES = (
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^head\.", "classifier."),
)
_VIT_BLOCK = re.compile(r"^blocks\.(\d+)\.(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2|attn\.qkv)\.(weight|bias)$")
_VIT_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _renamed(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor under `transformers`' names; timm's one for queries, keys and values becomes three."""
    if match := _RESNET_BLOCK.match(name):
        stage, block, kind, index, rest = match.groups()
        if kind == "downsample.":
            place = "shortcut." + ("convolution" if index == "0" else "normalization")
        else:
            place = f"layer.{int(index) - 1}." + ("convolution" if kind == "conv" else "normalization")
        return [(f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.{place}.{rest}", value)]
    if match := _VIT_BLOCK.match(name):
        block, part, rest = match.groups()
        start = f"vit.layers.{block}."
        if part != "attn.qkv":
            return [(f"{start}{_VIT_PARTS[part]}.{rest}", value)]
        letters = zip("qkv", value.chunk(3), strict=True)
        return [(f"{start}attention.{letter}_proj.{rest}", piece) for letter, piece in letters]
    for old, new in (*_RESNET_NAMES, *_VIT_NAMES):
        if re.match(old, name):
            return [(re.sub(old, new, name), value)]
    return [(name, value)]
