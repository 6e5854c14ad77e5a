"""A fitted head as a file that other programs read: safetensors with a loader of ten lines, or ONNX."""

import shutil
from collections.abc import Iterable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import nn

from nml_kit.errors import InvalidInputError, MissingDependencyError
from nml_kit.heads.training import HeadNetwork, ResidualTuner
from nml_kit.store import replacing, write_tensors

LOADER = "load_head.py"


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
    write_tensors(path, head_weights(head), metadata={"head": type(head).__name__, "classes": names})
    with (
        replacing(path.with_name(LOADER)) as temporary,
        as_file(files("nml_kit.heads") / "templates" / LOADER) as loader,
    ):
        shutil.copyfile(loader, temporary)
    return path


def save_onnx(head: BaseEstimator, path: str | Path, *, class_names: Iterable[str] | None = None) -> Path:
    """Write a fitted head as an ONNX model from `features` (N, D) float32 to `logits` (N, K); return its path.

    `class_names` are in the model's metadata, a line each. Raises as `save_head`, and MissingDependencyError without
    the package onnx.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingDependencyError("onnx is needed for this: pip install 'nml_kit[onnx]'.") from error
    path, names, weights = Path(path), _class_names(head, class_names), head_weights(head)
    layers = sum(name.startswith("tuner.") for name in weights) // 2
    nodes, current = [], "features"
    for layer in range(layers):
        if layer:
            nodes.append(helper.make_node("Relu", [current], [f"hidden.{layer}"]))
            current = f"hidden.{layer}"
        nodes.append(_linear(helper, current, f"tuner.{layer}", f"tuned.{layer}"))
        current = f"tuned.{layer}"
    if "scale" in weights:
        nodes.append(helper.make_node("Mul", [current, "scale"], ["scaled"]))
        nodes.append(helper.make_node("Add", ["features", "scaled"], ["tuned"]))
        current = "tuned"
    nodes.append(_linear(helper, current, "classifier", "logits"))
    num_classes, num_features = weights["classifier.weight"].shape
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in (("features", num_features), ("logits", num_classes))
    ]
    initial = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, type(head).__name__, ends[:1], ends[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"classes": "\n".join(names)})
    onnx.checker.check_model(model)
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


def head_weights(head: BaseEstimator) -> dict[str, NDArray[np.float32]]:
    """The weights of a fitted head by name, float32, as `save_head` writes them."""
    check_is_fitted(head)
    network = getattr(head, "module_", None)
    if not isinstance(network, HeadNetwork):
        raise InvalidInputError(f"Expected a fitted LinearProbe, MLPTune or NMTune, got {type(head).__name__}.")
    tuner: nn.Module = network.tuner
    weights: dict[str, torch.Tensor] = {}
    if isinstance(tuner, ResidualTuner):
        weights["scale"], tuner = tuner.scale, tuner.mlp
    for number, (weight, bias) in enumerate(_folded(tuner)):
        weights |= {f"tuner.{number}.weight": weight, f"tuner.{number}.bias": bias}
    weights |= {"classifier.weight": network.classifier.weight, "classifier.bias": network.classifier.bias}
    return {name: value.detach().cpu().float().numpy() for name, value in weights.items()}


def _folded(tuner: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weight and bias of each linear layer, with the normalisation after it folded in."""
    layers: list[tuple[torch.Tensor, torch.Tensor]] = []
    for module in tuner.children():
        if isinstance(module, nn.Linear):
            layers.append((module.weight.double(), module.bias.double()))
        elif isinstance(module, nn.BatchNorm1d):
            weight, bias = layers.pop()
            mean, variance = (torch.as_tensor(value).double() for value in (module.running_mean, module.running_var))
            gain = module.weight.double() / torch.sqrt(variance + module.eps)
            layers.append((gain[:, None] * weight, gain * (bias - mean) + module.bias.double()))
    return layers


def _linear(helper: Any, inputs: str, layer: str, output: str) -> Any:
    return helper.make_node("Gemm", [inputs, f"{layer}.weight", f"{layer}.bias"], [output], transB=1)


def _class_names(head: BaseEstimator, given: Iterable[str] | None) -> list[str]:
    check_is_fitted(head)
    classes = [str(name) for name in getattr(head, "classes_", [])]
    names = classes if given is None else [str(name) for name in given]
    if len(names) != len(classes):
        raise InvalidInputError(f"Expected {len(classes)} class names, those of the head's classes, got {len(names)}.")
    return names
