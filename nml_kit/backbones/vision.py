"""Frozen image encoders of torchvision, timm and open_clip, by name or from a file, with their own transforms."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from nml_kit.backbones.backbone import Backbone, freeze, library, weights_of
from nml_kit.backbones.clip import open_clip_library, require_open_clip_name
from nml_kit.backbones.networks import (
    build_network,
    first_width,
    remove_classifier,
    seeded,
    timm_network,
    torchvision_network,
)
from nml_kit.backbones.transforms import ImageTransform, LibraryTransform, Transform
from nml_kit.errors import DataFileError, unknown_name
from nml_kit.store import plain, read_json

RANDOM = "random"
_LOCAL = "local-dir:"
_WITH_SLASHES = ("hf-hub:", _LOCAL)  # of timm and open_clip: the rest is a name or path, without weights after a slash
_FILE_ARCHITECTURES = ("timm:NAME", "torchvision:NAME", "open_clip:NAME", "compact-resnet")


class ImageEncoder(nn.Module):
    """An open_clip model as an encoder of images: `encode_image`, projected and not normalised (N, E)."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Any) -> Any:
        return self.clip.encode_image(images)


def torchvision_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "torchvision:NAME" with its best weights, "torchvision:NAME/WEIGHTS", or "torchvision:NAME/random"."""
    name, weights = split_weights(source)
    with weights_of(source), seeded(seed):
        network = torchvision_network(name, weights=None if weights == RANDOM else weights or "DEFAULT")
        transform = transform or _torchvision_transform(name, weights)
    return freeze(source, remove_classifier(network), transform, settings={"architecture": f"torchvision:{name}"})


def timm_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "timm:NAME" with its tag's weights, or "timm:NAME/random"; also "timm:hf-hub:NAME" and "timm:local-dir:PATH"."""
    name, weights = split_weights(source)
    if weights not in ("", RANDOM):
        raise unknown_name(f"timm weights of {name}", weights, [RANDOM, "NAME.TAG"])
    with weights_of(source), seeded(seed):
        return freeze_timm(source, timm_network(name, pretrained=weights != RANDOM), transform)


def freeze_timm(source: str, network: Any, transform: Transform | None) -> Backbone:
    """The backbone of a timm model, with the transform of its own configuration."""
    data = library("timm", "models").data
    config = data.resolve_model_data_config(network)
    own = LibraryTransform(data.create_transform(**config), {"library": "timm", **plain(config)})
    architecture = f"timm:{network.pretrained_cfg.get('architecture')}"  # without the tag of its weights
    return freeze(source, remove_classifier(network), transform or own, settings={"architecture": architecture})


def open_clip_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "open_clip:NAME/TAG" or "open_clip:NAME/random"; "hf-hub:…" and "local-dir:PATH" need no tag."""
    name, weights = split_weights(source)
    open_clip = open_clip_library()
    if not name.startswith(_WITH_SLASHES):
        require_open_clip_name(name)
        tags = [*open_clip.list_pretrained_tags_by_model(name), RANDOM]
        if weights not in tags:
            raise unknown_name(f"open_clip weights of {name}", weights, tags)
    drawn = weights == RANDOM
    with weights_of(source), seeded(seed):
        clip = open_clip.create_model(name, pretrained=None if drawn else weights or None, require_pretrained=not drawn)
        return _freeze_open_clip(source, name, clip, transform)


def _freeze_open_clip(source: str, name: str, clip: Any, transform: Transform | None) -> Backbone:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = open_clip_library().get_model_preprocess_cfg(clip)
    function = image_transform_v2(PreprocessCfg(**config), is_train=False)
    own = LibraryTransform(function, {"library": "open_clip", **plain(config)})
    local = name.startswith(_LOCAL)
    architecture = read_json(f"{name.removeprefix(_LOCAL)}/open_clip_config.json")["model_cfg"] if local else name
    # The same weights with another activation give other features.
    quick_gelu = any(type(module).__name__ == "QuickGELU" for module in clip.modules())
    settings = {"architecture": architecture, "quick_gelu": quick_gelu}
    return freeze(source, ImageEncoder(clip), transform or own, "encode_image", settings=settings)


def _torchvision_transform(name: str, weights: str) -> LibraryTransform:
    """The transform of a torchvision model's weights; of its best for random ones, or where none are named."""
    known = library("torchvision", "models").models.get_model_weights(name)
    preset = known[weights if weights in known.__members__ else "DEFAULT"].transforms()
    content = {name: value for name, value in vars(preset).items() if not name.startswith("_")}
    content["interpolation"] = preset.interpolation.value
    content.pop("training")
    return LibraryTransform(preset, {"library": "torchvision", **plain(content)})


def split_weights(source: str) -> tuple[str, str]:
    """The model and the weights ("" for none named) of "family:MODEL/WEIGHTS".

    >>> split_weights("open_clip:RN50/yfcc15m"), split_weights("timm:hf-hub:timm/resnet18")
    (('RN50', 'yfcc15m'), ('hf-hub:timm/resnet18', ''))
    """
    name = source.partition(":")[2]
    if name.startswith(_WITH_SLASHES):
        return name, ""
    model, _, weights = name.partition("/")
    return model, weights


def file_backbone(source: str, transform: Transform | None) -> Backbone:
    """ "file:PATH#ARCHITECTURE", such as "file:weights.safetensors#timm:resnet50", with that model's own transform.

    The file is the `state_dict` of the model, alone or under "state_dict", "model" or an averaged "state_dict_ema"; its
    classifier, of any number of classes, is not used. Raises DataFileError if the file is missing, unreadable or
    of another architecture.
    """
    path, _, architecture = source.partition(":")[2].partition("#")
    family, _, name = architecture.partition(":")
    if not path or not (family in ("timm", "torchvision", "open_clip") or first_width(architecture)):
        raise unknown_name("architecture after '#' in", source, _FILE_ARCHITECTURES)
    if family == "open_clip":
        require_open_clip_name(name)
        clip = open_clip_library().create_model(name, load_weights=False)
        _fill(clip, path, architecture, set())
        return _freeze_open_clip(source, name, clip, transform)
    network = build_network(architecture, num_classes=2, seed=0)
    everything = set(network.state_dict())
    encoder = remove_classifier(network)
    _fill(encoder, path, architecture, everything - set(encoder.state_dict()))
    if family == "timm":
        return freeze_timm(source, encoder, transform)
    if family == "torchvision":
        transform = transform or _torchvision_transform(name, "")
        return freeze(source, encoder, transform, settings={"architecture": architecture})
    return freeze(source, encoder, transform or ImageTransform())


def _fill(network: nn.Module, path: str, architecture: str, not_used: set[str]) -> None:
    """Set every tensor of the network from a file, which may have those `not_used` besides."""
    state = _read_state(path)
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataFileError(f"{path}: expected the weights of {architecture}, got other shapes: {error}") from error
    unexpected = sorted(set(unexpected) - not_used)
    if missing or unexpected:
        raise DataFileError(
            f"{path}: expected the weights of {architecture}, got a file without {len(missing)} of its tensors "
            f"({', '.join(missing[:3])}) and with {len(unexpected)} others ({', '.join(unexpected[:3])}); name the "
            "architecture that the file is of."
        )


def _read_state(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise DataFileError(f"Expected a file of weights at {path}, got nothing there.")
    models = library("timm", "models").models
    try:
        state = models.load_state_dict(path, weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("not tensors by name")
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        raise DataFileError(
            f"Expected a file of weights, a state_dict without pickled code, at {path}, got {type(error).__name__}: "
            f"{error}; save it with safetensors."
        ) from error
    return state
