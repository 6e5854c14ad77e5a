"""A frozen compact ResNet as one small file: its weights in float16, with what one needs to know about it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from nml_kit.backbones.backbone import Backbone
from nml_kit.backbones.clip import CLIP_COMPACT, image_network
from nml_kit.backbones.networks import COMPACT_RESNET, build_network, first_width
from nml_kit.backbones.transforms import ImageTransform
from nml_kit.backbones.vision import freeze_network
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.store import read_tensors, write_tensors

_CLASSIFIER = {"fc.weight", "fc.bias"}


class _FrozenCard(BaseModel, extra="forbid"):
    architecture: str
    transform: ImageTransform
    card: dict[str, Any]


def save_frozen(backbone: Backbone, path: str | Path) -> None:
    """Write a pre-trained compact ResNet, or the image network of a contrastive model, as float16 safetensors.

    The weights are rounded, so its features differ slightly from the backbone's. What trained it (the card without its
    history) is in the file's metadata; the text network of a contrastive model is left out. Raises InvalidInputError
    for a backbone that was not pre-trained by `pretrain`, or not with a compact ResNet.
    """
    card = dict(backbone.card or {})
    architecture = str(card.get("recipe", {}).get("architecture", "")).replace(CLIP_COMPACT, COMPACT_RESNET)
    if first_width(architecture) is None or not isinstance(backbone.transform, ImageTransform):
        raise InvalidInputError(
            f"Expected a backbone made by `pretrain` with a compact ResNet, got {backbone.name!r} with recipe "
            f"{card.get('recipe')}; keep others in the files of their own library."
        )
    arrays = {
        name: _as_float(tensor.numpy(), np.float16)
        for name, tensor in image_network(backbone.encode).state_dict().items()
    }
    card.pop("history", None)
    content = _FrozenCard(architecture=architecture, transform=backbone.transform, card=card)
    write_tensors(path, arrays, metadata=json.loads(content.model_dump_json()))


def load_frozen(path: str | Path) -> Backbone:
    """The backbone in a file of `save_frozen`, in float32.

    Raises DataFileError if the file is missing, damaged or another kind of safetensors file.

    >>> import tempfile
    >>> from nml_kit import inject_label_noise, load_task
    >>> from nml_kit.pretraining.supervised import pretrain
    >>> from nml_kit.pretraining.recipes import Recipe
    >>> task = load_task("icons-pretrain").limit(classes=3, train_per_class=8, seed=0)
    >>> labels = task.select(split="train").labels
    >>> noise = inject_label_noise(labels, 0.25, num_classes=3, seed=0, ids=task.select(split="train").ids)
    >>> recipe = Recipe(architecture="compact-resnet:8", epochs=1, batch_size=8)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_frozen(pretrain(task, noise, recipe=recipe, seed=0, progress=False), f"{directory}/one.safetensors")
    ...     load_frozen(f"{directory}/one.safetensors")(task.images[:2]).shape
    torch.Size([2, 64])
    """
    state = {
        name: torch.from_numpy(_as_float(np.array(values), np.float32)) for name, values in read_tensors(path).items()
    }
    try:
        with safe_open(path, framework="np") as file:
            found = _FrozenCard.model_validate_json((file.metadata() or {}).get("nml_kit", ""))
        network = build_network(found.architecture, num_classes=2, seed=0)
        missing, unexpected = network.load_state_dict(state, strict=False)
    except (OSError, SafetensorError, ValidationError, RuntimeError) as error:
        raise DataFileError(f"Expected a file that save_frozen wrote at {path}, got: {error}") from error
    if unexpected or set(missing) != _CLASSIFIER:
        raise DataFileError(
            f"Expected all weights of {found.architecture} without classifier in {path}; save it again."
        )
    return freeze_network(f"file:{Path(path).stem}", network, found.transform, found.card)


def _as_float(values: np.ndarray, dtype: type[np.floating[Any]]) -> np.ndarray:
    """The array in `dtype`, but for counts of batches."""
    return values.astype(dtype) if values.dtype.kind == "f" else values
