"""From arrays and settings to trained heads: what all `fit` methods share, for one head or many."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets

from nml_kit.errors import InvalidInputError
from nml_kit.heads.inputs import on_host, require_finite, validated_features
from nml_kit.heads.terms import Recipe
from nml_kit.heads.training import HeadNetwork, Trainee, TrainingSettings, build_network, train

Mask = NDArray[np.bool_] | None


class TrainableHead(Protocol):
    """What the training of a head needs to know of it."""

    dtype: str
    device: str
    random_state: Any
    classes_: NDArray[Any]
    n_features_in_: int
    loss_curve_: list[float]
    module_: HeadNetwork

    def _settings(self) -> TrainingSettings: ...
    def _tuner_recipe(self) -> Recipe | None: ...
    def _hidden_widths(self, num_features: int) -> tuple[int, ...]: ...


def fit_together(heads: Sequence[Any], X: Any, y: ArrayLike, masks: Sequence[Mask]) -> None:
    """Fit heads in place on features X (N, D) and labels y (N,), each on the rows of its mask (None: all)."""
    y = on_host(y)
    for place in {(head.dtype, head.device): None for head in heads}:
        chosen = [position for position, head in enumerate(heads) if (head.dtype, head.device) == place]
        _fit_at(*place, [heads[position] for position in chosen], X, y, [masks[position] for position in chosen])


def _fit_at(dtype: str, device: str, heads: list[Any], X: Any, y: Any, masks: list[Mask]) -> None:
    settings = [head._settings() for head in heads]
    features, y = _validated(heads, X, y)
    num_features = features.shape[1]
    subsets: dict[bytes, tuple[NDArray[Any], torch.Tensor, torch.Tensor]] = {}
    trainees = []
    for head, setting, mask in zip(heads, settings, masks, strict=True):
        key = b"" if mask is None else np.asarray(mask).tobytes()
        if key not in subsets:
            subsets[key] = _subset(y, mask, features.device)
        head.classes_, rows, codes = subsets[key]
        # Two streams, so that heads of different shapes with one seed see the batches in one order.
        seeds = check_random_state(head.random_state).randint(np.iinfo(np.int32).max, size=2)
        generator, widths = torch.Generator().manual_seed(int(seeds[0])), head._hidden_widths(num_features)
        network = build_network(num_features, len(head.classes_), head._tuner_recipe(), widths, generator)
        trainees.append(Trainee(network.to(device, getattr(torch, dtype)), setting, rows, codes, int(seeds[1])))
    curves = train(trainees, features)
    for head, trainee, curve in zip(heads, trainees, curves, strict=True):
        head.loss_curve_, head.module_ = curve, trainee.network.eval().cpu()


def _validated(heads: list[Any], X: Any, y: Any) -> tuple[torch.Tensor, NDArray[Any]]:
    """Check X and y once for all heads, and tell each head the features that it has seen."""
    features, y = validated_features(heads[0], X, y)
    require_finite(features, heads[0].dtype, source=X)
    check_classification_targets(y)
    names = ("n_features_in_", "feature_names_in_")
    seen = {name: getattr(heads[0], name) for name in names if hasattr(heads[0], name)}
    for head in heads[1:]:
        vars(head).update(seen)
    return features, y


def _subset(y: NDArray[Any], mask: Mask, device: torch.device) -> tuple[NDArray[Any], torch.Tensor, torch.Tensor]:
    """Return the classes (K,) among the chosen rows, the rows (n,), and all labels as codes of those classes (N,)."""
    if mask is not None and (np.shape(mask) != (len(y),) or np.asarray(mask).dtype != bool):
        came = f"{np.asarray(mask).dtype} of shape {np.shape(mask)}"
        raise InvalidInputError(f"Expected sample masks of bool ({len(y)},), one value per row of X, got {came}.")
    rows = np.arange(len(y)) if mask is None else np.flatnonzero(mask)
    classes, inverse = np.unique(y[rows], return_inverse=True)
    if len(classes) < 2:
        came = f"one class: {classes[0]!r}" if len(classes) else "no class"
        raise InvalidInputError(f"Expected at least two classes in y, got {came} ({len(rows)} samples).")
    codes = np.zeros(len(y), dtype=np.int64)
    codes[rows] = inverse
    return classes, torch.from_numpy(rows).to(device), torch.from_numpy(codes).to(device)
