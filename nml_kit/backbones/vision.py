"""Frozen image encoders of torchvision, timm and open_clip, each with the transform of its own library."""

from typing import Any

import torch
from torch import nn

from nml_kit.backbones.backbone import Backbone, fingerprint_weights, found_on_hub
from nml_kit.backbones.clip import ImageTower, open_clip_library
from nml_kit.backbones.networks import remove_classifier, seeded, timm_network, torchvision_network
from nml_kit.backbones.transforms import LibraryTransform, Transform
from nml_kit.errors import unknown_name
from nml_kit.store import plain, read_json

RANDOM = "random"
_LOCAL = "local-dir:"
_WHOLE_NAMES = ("hf-hub:", _LOCAL)  # of timm and open_clip: the rest is a name or path that may have slashes


class ImageEncoder(nn.Module):
    """An open_clip model as an encoder of images: `encode_image`, projected and not normalised (N, E)."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Any) -> Any:
        return self.clip.encode_image(images)


def freeze_network(
    name: str,
    network: nn.Module,
    transform: Transform,
    card: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Backbone:
    """The backbone of a classifier: last layer removed, eval mode, float32, no gradients."""
    return freeze_encoder(name, remove_classifier(network), transform, card, settings)


def freeze_encoder(
    name: str,
    encoder: nn.Module,
    transform: Transform,
    card: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
) -> Backbone:
    """The backbone of a network without classifier."""
    encoder = _frozen(encoder)
    return Backbone(name, encoder, fingerprint_weights(encoder), transform, card=card, settings=settings)


def freeze_image_tower(
    name: str, clip: nn.Module, transform: Transform, card: dict[str, Any] | None = None
) -> Backbone:
    """The backbone of a contrastive model, which keeps its text network for `zero_shot`."""
    tower = _frozen(ImageTower(clip))
    return Backbone(name, tower, fingerprint_weights(tower), transform, card=card)


def torchvision_backbone(source: str, *, seed: int = 0, transform: Transform | None = None) -> Backbone:
    """ "torchvision:NAME" with its best weights, "torchvision:NAME/WEIGHTS", or "torchvision:NAME/random"."""
    name, weights = split_weights(source)
    with found_on_hub(source, "models"), seeded(seed):
        network = torchvision_network(name, weights=None if weights == RANDOM else weights or "DEFAULT")
        transform = transform or torchvision_transform(name, weights)
    return freeze_network(source, network, transform, settings={"architecture": f"torchvision:{name}"})


def timm_backbone(source: str, *, seed: int = 0, transform: Transform | None = None) -> Backbone:
    """ "timm:NAME" with its tag's weights, or "timm:NAME/random"; also "timm:hf-hub:NAME" and "timm:local-dir:PATH"."""
    name, weights = split_weights(source)
    if weights not in ("", RANDOM):
        raise unknown_name(f"timm weights of {name}", weights, [RANDOM, "NAME.TAG"])
    with found_on_hub(source, "models"), seeded(seed):
        network = timm_network(name, pretrained=weights != RANDOM)
        return freeze_network(source, network, transform or timm_transform(network), settings=timm_settings(network))


def open_clip_backbone(source: str, *, seed: int = 0, transform: Transform | None = None) -> Backbone:
    """ "open_clip:NAME/TAG" or "open_clip:NAME/random"; "hf-hub:…" and "local-dir:PATH" need no tag."""
    name, weights = split_weights(source)
    library = open_clip_library()
    if not name.startswith(_WHOLE_NAMES):
        if name not in library.list_models():
            raise unknown_name("open_clip model", name, library.list_models())
        tags = [*library.list_pretrained_tags_by_model(name), RANDOM]
        if weights not in tags:
            raise unknown_name(f"open_clip weights of {name}", weights, tags)
    random = weights == RANDOM
    with found_on_hub(source, "models"), seeded(seed):
        clip = library.create_model(name, pretrained=None if random else weights or None, require_pretrained=not random)
        return freeze_open_clip(source, name, clip, transform)


def freeze_open_clip(source: str, name: str, clip: Any, transform: Transform | None) -> Backbone:
    """The backbone of an open_clip model."""
    encoder = _frozen(ImageEncoder(clip))
    # The same weights with another activation give other features.
    activations = {type(module).__name__ for module in clip.modules()}
    local = name.startswith(_LOCAL)
    architecture = read_json(f"{name.removeprefix(_LOCAL)}/open_clip_config.json")["model_cfg"] if local else name
    settings = {"architecture": architecture, "quick_gelu": "QuickGELU" in activations}
    transform = transform or _open_clip_transform(clip)
    return Backbone(source, encoder, fingerprint_weights(encoder), transform, "encode_image", settings=settings)


def torchvision_transform(name: str, weights: str = "") -> LibraryTransform:
    """The transform of a torchvision model's weights, by default (also for random ones) of its best."""
    from torchvision import models

    known = models.get_model_weights(name)
    preset = known[weights if weights in known.__members__ else "DEFAULT"].transforms()
    content = {name: value for name, value in vars(preset).items() if not name.startswith("_")}
    content["interpolation"] = preset.interpolation.value
    content.pop("training")
    return LibraryTransform(preset, {"library": "torchvision", **plain(content)})


def timm_transform(network: nn.Module) -> LibraryTransform:
    """The transform that timm documents for a model: that of its own configuration."""
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(network)
    return LibraryTransform(create_transform(**config), {"library": "timm", **plain(config)})


def timm_settings(network: Any) -> dict[str, Any]:
    """The architecture, without the tag of its weights."""
    return {"architecture": f"timm:{network.pretrained_cfg.get('architecture')}"}


def split_weights(source: str) -> tuple[str, str]:
    """The model and the weights ("" for none named) of "family:MODEL/WEIGHTS".

    >>> split_weights("open_clip:RN50/yfcc15m"), split_weights("timm:hf-hub:timm/resnet18")
    (('RN50', 'yfcc15m'), ('hf-hub:timm/resnet18', ''))
    """
    name = source.partition(":")[2]
    if name.startswith(_WHOLE_NAMES):
        return name, ""
    model, _, weights = name.partition("/")
    return model, weights


def _open_clip_transform(clip: Any) -> LibraryTransform:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = open_clip_library().get_model_preprocess_cfg(clip)
    function = image_transform_v2(PreprocessCfg(**config), is_train=False)
    return LibraryTransform(function, {"library": "open_clip", **plain(config)})


def _frozen(network: nn.Module) -> nn.Module:
    """The network in eval mode and float32, without gradients, in the memory layout that convolutions like."""
    network = network.float().eval().requires_grad_(False)
    if any(isinstance(module, nn.GroupNorm) for module in network.modules()):
        return network  # in that layout PyTorch's group normalisation is off by 1e-4 on a CPU
    return network.to(memory_format=torch.channels_last)
