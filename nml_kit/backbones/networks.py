"""Networks that pre-training builds and backbones load: a compact ResNet for 32×32 images, torchvision, timm."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nml_kit.backbones.backbone import library
from nml_kit.errors import InvalidInputError, unknown_name

COMPACT_RESNET = "compact-resnet"
_DEFAULT_WIDTH = 32
NETWORK_PATTERNS = (COMPACT_RESNET, f"{COMPACT_RESNET}:WIDTH (a multiple of 8)", "torchvision:NAME", "timm:NAME")


class RemovedClassifier(nn.Identity):
    """Where `remove_classifier` took the classifier away: tells that place from other identities of a network."""


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation and a shortcut (He et al., 2016, basic block)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class CompactResNet(nn.Module):
    """ResNet for 32×32 images: stride-2 stem, one block a stage, D = `widths[-1]` features.

    With the default widths: 1.2 M parameters and 0.032 GFLOPs (15.9 M multiply-adds) for one image's features.

    >>> CompactResNet(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    default_cfg: dict[str, Any] = {"pool_size": None}  # noqa: RUF012 (what open_clip asks of an image network of timm)

    def __init__(self, num_classes: int, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        self.num_features = widths[-1]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks, channels = [], widths[0]
        for stage, width in enumerate(widths):
            blocks.append(ResidualBlock(channels, width, stride=1 if stage == 0 else 2))
            channels = width
        self.stages = nn.Sequential(*blocks)
        self.fc: nn.Module = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (B, K) of normalised images (B, 3, H, W)."""
        return self.fc(self.stages(self.stem(x)).mean(dim=(2, 3)))

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Return pooled features: what open_clip calls."""
        self.fc = nn.Identity()


def stage_widths(architecture: str, base: str = COMPACT_RESNET) -> tuple[int, ...] | None:
    """Channels of the four stages, each twice those before, of `base` or "`base`:WIDTH"; None for other names.

    >>> stage_widths("compact-resnet"), stage_widths("compact-resnet:24"), stage_widths("compact-resnet:20")
    ((32, 64, 128, 256), (24, 48, 96, 192), None)
    """
    match = re.fullmatch(rf"{re.escape(base)}(?::([1-9][0-9]*))?", architecture)
    first = int(match[1] or _DEFAULT_WIDTH) if match else 0
    return tuple(first * 2**stage for stage in range(4)) if first and first % 8 == 0 else None


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block on torch's global generator, and that of a GPU, seeded with `seed`; then they are as before."""
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def build_network(architecture: str, *, num_classes: int, seed: int) -> nn.Module:
    """A randomly initialised classifier: "compact-resnet", "torchvision:NAME" or "timm:NAME".

    "compact-resnet:24" has stages of 24, 48, 96 and 192 channels instead of 32 to 256, and so on for multiples of 8.

    Raises UnknownNameError for an unknown name, MissingDependencyError if its library is not installed.

    >>> type(build_network("compact-resnet", num_classes=5, seed=0)).__name__
    'CompactResNet'
    """
    family, _, name = architecture.partition(":")
    with seeded(seed):
        if widths := stage_widths(architecture):
            return CompactResNet(num_classes, widths)
        if family == "torchvision":
            return torchvision_network(name, weights=None, num_classes=num_classes)
        if family == "timm":
            return timm_network(name, pretrained=False, num_classes=num_classes)
    raise unknown_name("architecture", architecture, NETWORK_PATTERNS)


def torchvision_network(name: str, *, weights: str | None, num_classes: int = 1000) -> nn.Module:
    """A torchvision classification model; `weights` is a name such as "DEFAULT", or None for random ones."""
    models = library("torchvision", "models").models
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    return models.get_model(name, weights=weights, num_classes=num_classes)


def timm_network(name: str, *, pretrained: bool, num_classes: int = 1000, **options: Any) -> nn.Module:
    """A timm classification model; `name` may also be "hf-hub:OWNER/NAME" or "local-dir:PATH"."""
    timm = library("timm", "models")
    if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)


def remove_classifier(network: nn.Module) -> nn.Module:
    """Let the network return penultimate features: timm's way, or `RemovedClassifier` as its last linear layer.

    Raises InvalidInputError if the network has no linear layer to remove.
    """
    reset = getattr(network, "reset_classifier", None)
    if callable(reset) and not isinstance(network, CompactResNet):  # timm: a head may be a convolution, or two
        reset(0)
        return network
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InvalidInputError(
            f"Expected a classifier that ends in a linear layer, but {type(network).__name__} has none; "
            "pass a callable that returns features (batch, D) instead."
        )
    parent, _, child = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, RemovedClassifier())
    return network
