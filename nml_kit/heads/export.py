"""A fitted head for other programs: safetensors with a loader of ten lines, ONNX, or folded into its network."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from nml_kit.backbones import Backbone, RemovedClassifier
from nml_kit.errors import InvalidInputError, MissingDependencyError
from nml_kit.heads.networks import HeadNetwork, ResidualTuner
from nml_kit.store import replacing, write_tensors

LOADER = "load_head.py"
_LOADER_SOURCE = Path(__file__).with_name("load_head.txt")


def save_head(head: BaseEstimator, path: str | Path, *, class_names: Iterable[str] | None = None) -> Path:
    """Write a fitted LinearProbe, MLPTune or NMTune as float32 safetensors beside `load_head.py`, and return its path.

    The loader needs numpy and safetensors alone. Layers are `tuner.0` and so on (normalisation is folded into them),
    `scale` where the tuner is residual, and `classifier`; `class_names` are those of `head.classes_`, in order. Raises
    InvalidInputError for another kind of head or of another number of names, NotFittedError before `fit`.

    >>> import tempfile
    >>> from nml_kit import LinearProbe
    >>> probe = LinearProbe(epochs=1).fit(np.eye(8), np.arange(8) % 2)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_head(probe, f"{directory}/head.safetensors", class_names=["even", "odd"]).name
    'head.safetensors'
    """
    path, names = Path(path), _class_names(head, class_names)
    write_tensors(path, _head_weights(head), metadata={"head": type(head).__name__, "classes": names})
    with replacing(path.with_name(LOADER)) as temporary:
        temporary.write_bytes(_LOADER_SOURCE.read_bytes())
    return path


def save_onnx(head: BaseEstimator, path: str | Path, *, class_names: Iterable[str] | None = None) -> Path:
    """Write a fitted head as an ONNX model from `features` (N, D) float32 to `logits` (N, K); return its path.

    `class_names` are in the model's metadata, a line each. Raises as `save_head`, and MissingDependencyError without
    the package onnx.
    """
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise MissingDependencyError("onnx is needed for this: pip install 'nml_kit[onnx]'.") from error
    path, names, weights = Path(path), _class_names(head, class_names), _head_weights(head)
    num_classes, num_features = weights["classifier.weight"].shape
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", width])
        for name, width in (("features", num_features), ("logits", num_classes))
    ]
    initial = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(_onnx_nodes(helper, weights), type(head).__name__, ends[:1], ends[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"classes": "\n".join(names)})
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def fuse_head(head: BaseEstimator, backbone: Backbone) -> dict[str, Tensor]:
    """Return the state of the backbone's own architecture with K classes, whose classifier is the head, in float32.

    `build_network(name, num_classes=K, seed=0)`, or torchvision's or timm's own function, makes the model that loads it
    with `load_state_dict`; its K outputs are the head's logits, in the order of `head.classes_`, for images under the
    backbone's transform. Heads are a LinearProbe, also that of a `TunedModel`, and MLPTune or NMTune with `hidden=()`,
    whose tuner is linear. Raises InvalidInputError for another head and for a backbone without a place for a classifier
    (a contrastive model, texts, a callable).

    >>> from nml_kit import LinearProbe, load_backbone
    >>> from nml_kit.backbones import build_network
    >>> backbone = load_backbone("compact-resnet:8")
    >>> probe = LinearProbe(epochs=1).fit(np.eye(64), np.arange(64) % 3)
    >>> model = build_network("compact-resnet:8", num_classes=3, seed=0)
    >>> model.load_state_dict(fuse_head(probe, backbone))
    <All keys matched successfully>
    """
    encoder, place = _place_of_classifier(backbone)
    weight, bias = (torch.from_numpy(values.astype(np.float32)) for values in _as_one_layer(head))
    if getattr(encoder.get_submodule(place.rpartition(".")[0]), "use_conv", False):
        weight = weight[:, :, None, None]  # some of timm's classifiers are 1×1 convolutions
    state = {name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()}
    return state | {f"{place}.weight": weight, f"{place}.bias": bias}


def _head_weights(head: BaseEstimator) -> dict[str, NDArray[np.float32]]:
    """The weights of a fitted head by name, as `save_head` writes them."""
    check_is_fitted(head)
    network = getattr(head, "module_", None)
    if not isinstance(network, HeadNetwork):
        raise InvalidInputError(f"Expected a fitted LinearProbe, MLPTune or NMTune, got {type(head).__name__}.")
    tuner: nn.Module = network.tuner
    weights: dict[str, Tensor] = {}
    if isinstance(tuner, ResidualTuner):
        weights["scale"], tuner = tuner.scale, tuner.mlp
    for number, (weight, bias) in enumerate(_folded(tuner)):
        weights |= {f"tuner.{number}.weight": weight, f"tuner.{number}.bias": bias}
    weights |= {"classifier.weight": network.classifier.weight, "classifier.bias": network.classifier.bias}
    return {name: value.detach().cpu().float().numpy() for name, value in weights.items()}


def _folded(tuner: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of each linear layer, with the normalisation after it folded in."""
    layers: list[tuple[Tensor, Tensor]] = []
    for module in tuner.children():
        if isinstance(module, nn.Linear):
            layers.append((module.weight.double(), module.bias.double()))
        elif isinstance(module, nn.BatchNorm1d):
            weight, bias = layers.pop()
            mean, variance = (torch.as_tensor(value).double() for value in (module.running_mean, module.running_var))
            gain = module.weight.double() / torch.sqrt(variance + module.eps)
            layers.append((gain[:, None] * weight, gain * (bias - mean) + module.bias.double()))
    return layers


def _class_names(head: BaseEstimator, class_names: Iterable[str] | None) -> list[str]:
    check_is_fitted(head)
    classes = [str(name) for name in getattr(head, "classes_", [])]
    names = classes if class_names is None else [str(name) for name in class_names]
    if len(names) != len(classes):
        raise InvalidInputError(f"Expected {len(classes)} class names, those of the head's classes, got {len(names)}.")
    return names


def _onnx_nodes(helper: Any, weights: dict[str, NDArray[np.float32]]) -> list[Any]:
    def linear(inputs: str, layer: str, output: str) -> Any:
        return helper.make_node("Gemm", [inputs, f"{layer}.weight", f"{layer}.bias"], [output], transB=1)

    nodes, current = [], "features"
    for layer in range(sum(name.startswith("tuner.") for name in weights) // 2):
        if layer:
            nodes.append(helper.make_node("Relu", [current], [f"hidden.{layer}"]))
            current = f"hidden.{layer}"
        nodes.append(linear(current, f"tuner.{layer}", f"tuned.{layer}"))
        current = f"tuned.{layer}"
    if "scale" in weights:
        nodes.append(helper.make_node("Mul", [current, "scale"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["features", "scaled"], ["tuned"]))
        current = "tuned"
    return [*nodes, linear(current, "classifier", "logits")]


def _place_of_classifier(backbone: Backbone) -> tuple[nn.Module, str]:
    """The network of the backbone and the name of the classifier that it had."""
    encoder = backbone.encode
    if isinstance(encoder, nn.Module):
        removed = (name for name, part in encoder.named_modules() if isinstance(part, RemovedClassifier))
        place = next(removed, getattr(encoder, "pretrained_cfg", {}).get("classifier"))  # timm says what it calls it
        if isinstance(place, str):
            return encoder, place
    raise InvalidInputError(
        f"Backbone {backbone.name!r}: expected a network that had a linear classifier (compact-resnet, torchvision, "
        "timm, packaged images), but it has no place for one; write the head to a file of its own with save_head."
    )


def _as_one_layer(head: BaseEstimator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (K, D) and bias (K,) of a head that is linear as a whole."""
    weights = {name: values.astype(np.float64) for name, values in _head_weights(head).items()}
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
