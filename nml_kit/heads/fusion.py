"""A fitted linear head put back where a network's classifier was: one plain model, for programs without nml_kit."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from nml_kit.backbones import Backbone, RemovedClassifier
from nml_kit.errors import InvalidInputError
from nml_kit.heads.export import head_weights


def fuse_head(head: BaseEstimator, backbone: Backbone) -> dict[str, Tensor]:
    """The state of the backbone's own architecture with K classes, whose classifier is the head: float32 tensors.

    `build_network(name, num_classes=K, seed=0)`, or torchvision's or timm's own function, makes the model that loads it
    with `load_state_dict`; its K outputs are the head's logits, in the order of `head.classes_`, for images under the
    backbone's transform. Heads are a LinearProbe, also that of a `TunedModel`, and MLPTune or NMTune with `hidden=()`,
    whose tuner is linear. Raises InvalidInputError for another head and for a backbone without a place for a classifier
    (a contrastive model, texts, a callable).

    >>> from nml_kit import LinearProbe, load_backbone
    >>> from nml_kit.backbones.networks import build_network
    >>> backbone = load_backbone("compact-resnet:8")
    >>> probe = LinearProbe(epochs=1).fit(np.eye(64), np.arange(64) % 3)
    >>> model = build_network("compact-resnet:8", num_classes=3, seed=0)
    >>> model.load_state_dict(fuse_head(probe, backbone))
    <All keys matched successfully>
    """
    encoder, place = _with_place(backbone)
    weight, bias = (torch.from_numpy(values.astype(np.float32)) for values in _as_one_layer(head))
    if getattr(encoder.get_submodule(place.rpartition(".")[0]), "use_conv", False):
        weight = weight[:, :, None, None]  # some of timm's classifiers are 1×1 convolutions
    state = {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
    return state | {f"{place}.weight": weight, f"{place}.bias": bias}


def _with_place(backbone: Backbone) -> tuple[nn.Module, str]:
    """The network of the backbone and the name of the classifier that it had."""
    encoder = backbone.encode
    if isinstance(encoder, nn.Module):
        places: list[Any] = [name for name, part in encoder.named_modules() if isinstance(part, RemovedClassifier)]
        places += [getattr(encoder, "pretrained_cfg", {}).get("classifier")]  # timm says what it calls it
        if isinstance(places[0], str):
            return encoder, places[0]
    raise InvalidInputError(
        f"Backbone {backbone.name!r}: expected a network that had a linear classifier (compact-resnet, torchvision, "
        "timm, packaged images), but it has no place for one; write the head to a file of its own with save_head."
    )


def _as_one_layer(head: BaseEstimator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (K, D) and bias (K,) of a head that is linear as a whole."""
    weights = {name: values.astype(np.float64) for name, values in head_weights(head).items()}
    weight, bias = weights["classifier.weight"], weights["classifier.bias"]
    if "tuner.1.weight" in weights:
        raise InvalidInputError(
            f"Expected a head that is linear (a LinearProbe), got {type(head).__name__} with a layer of ReLUs, which "
            "no classifier of the network can hold; write it to a file of its own with save_head."
        )
    if "tuner.0.weight" in weights:
        scale = weights.get("scale", np.ones(len(weights["tuner.0.bias"])))
        inner = scale[:, None] * weights["tuner.0.weight"] + ("scale" in weights) * np.eye(len(scale))
        weight, bias = weight @ inner, bias + weight @ (scale * weights["tuner.0.bias"])
    return weight, bias
