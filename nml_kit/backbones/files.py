"""Frozen encoders whose weights are in a file of one's own: safetensors, or PyTorch's format without pickled code."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from nml_kit.backbones.backbone import Backbone, found_on_hub
from nml_kit.backbones.clip import open_clip_library
from nml_kit.backbones.networks import build_network, first_width, remove_classifier
from nml_kit.backbones.transforms import ImageTransform, Transform
from nml_kit.backbones.vision import (
    freeze_encoder,
    freeze_open_clip,
    timm_settings,
    timm_transform,
    torchvision_transform,
)
from nml_kit.errors import DataFileError, unknown_name

FILE_ARCHITECTURES = ("timm:NAME", "torchvision:NAME", "open_clip:NAME", "compact-resnet")


def file_backbone(source: str, *, transform: Transform | None = None) -> Backbone:
    """ "file:PATH#ARCHITECTURE", such as "file:weights.safetensors#timm:resnet50", with that model's own transform.

    The file is the `state_dict` of the model, alone or under "state_dict", "model" or an averaged "state_dict_ema"; its
    classifier, of any number of classes, is not used. Raises DataFileError if the file is missing, unreadable or
    of another architecture.
    """
    path, _, architecture = source.partition(":")[2].partition("#")
    family, _, name = architecture.partition(":")
    if not path or not (family in ("timm", "torchvision", "open_clip") or first_width(architecture)):
        raise unknown_name("architecture after '#' in", source, FILE_ARCHITECTURES)
    if family == "open_clip":
        library = open_clip_library()
        if name not in library.list_models():
            raise unknown_name("open_clip model", name, library.list_models())
        clip = library.create_model(name, load_weights=False)
        _load(clip, path, architecture, set())
        return freeze_open_clip(source, name, clip, transform)
    network = build_network(architecture, num_classes=2, seed=0)
    whole = set(network.state_dict())
    encoder = remove_classifier(network)
    _load(encoder, path, architecture, whole - set(encoder.state_dict()))
    if family == "timm":
        return freeze_encoder(source, encoder, transform or timm_transform(encoder), settings=timm_settings(encoder))
    if family == "torchvision":
        settings = {"architecture": architecture}
        return freeze_encoder(source, encoder, transform or torchvision_transform(name), settings=settings)
    return freeze_encoder(source, encoder, transform or ImageTransform())


def _load(network: nn.Module, path: str, architecture: str, not_used: set[str]) -> None:
    """Fill the network, with every tensor that it has; the file may have those `not_used` besides."""
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
    with found_on_hub(path, "models"):
        from timm.models import load_state_dict
    try:
        state: Any = load_state_dict(path, weights_only=True)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("not tensors by name")
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, SafetensorError,
            UnpicklingError) as error:  # fmt: skip
        raise DataFileError(
            f"Expected a file of weights, a state_dict without pickled code, at {path}, got {type(error).__name__}: "
            f"{error}; save it with safetensors."
        ) from error
    return state
