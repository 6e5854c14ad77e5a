"""Heads on frozen features: linear probe, MLP tuning and NMTune, as scikit-learn classifiers.

N samples, D features, K classes, M samples in a batch. Heads train in torch with AdamW and a cosine to 0, from random
generators of their own. The same `random_state`, data, machine and number of threads give the same bytes.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.heads.inputs import BLOCK_ROWS, Mask, finite_blocks, require, validated_features
from nml_kit.heads.networks import Design
from nml_kit.heads.terms import TERM_WEIGHTS, Recipe, term_weights
from nml_kit.heads.training import fit_together

_DTYPES = ("float32", "float64")
# With few features (toy data) a layer of D ReLUs may start with all of them dead; real features have D ≥ 64.
_LEAST_HIDDEN = 64
# The signature is the dataclass's; equality and repr are scikit-learn's.
_settings = dataclass(kw_only=True, eq=False, repr=False)


@_settings
class _Head(ClassifierMixin, BaseEstimator):
    """What the three heads share: their settings, training and prediction."""

    epochs: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    random_state: Any = 0
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    verbose: bool = False

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Train the head on features X (N, D) and labels y (N,), and return it.

        X is an array, tensor or memory-map. Floats of 16, 32 and 64 bits stay as and where they lie, on a disk too:
        each batch is gathered by index, then converted to `dtype` and moved to `device`. y holds any kind of labels.
        Sets `classes_` (K,), `n_features_in_`, `loss_curve_` (mean loss of each epoch) and `module_`, the trained
        network. Raises InvalidInputError for NaN or infinite features, fewer than two classes, settings out of range
        or a training that diverges, and ValueError when X and y differ in length.
        """
        fit_together([self], X, y, [None])
        return self

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:
        """Return the class probabilities, float64 (N, K), in the order of `classes_`; X is (N, D)."""
        return torch.softmax(self._infer(X, "logits"), dim=1).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each row of X (N, D), in the dtype of the labels passed to `fit`."""
        codes = self._infer(X, "logits").argmax(dim=1).numpy()
        return self.classes_[codes]

    @torch.no_grad()
    def _infer(self, X: Any, output: Literal["features", "logits"]) -> torch.Tensor:
        """Compute in float64: its cost is nil beside fitting, and a row's result is free of its neighbours."""
        check_is_fitted(self)
        (features,) = validated_features(self, X, reset=False)
        network = copy.deepcopy(self.module_).to(self.device, torch.float64)
        place = ("features", "logits").index(output)
        width = (features.shape[1], len(self.classes_))[place]
        results = torch.empty(len(features), width, dtype=torch.float64)  # at once: many small parts tear the heap
        blocks = finite_blocks(features, getattr(torch, self.dtype), source=X)
        for rows, block in zip(results.split(BLOCK_ROWS), blocks, strict=True):
            rows.copy_(network(block.to(self.device, torch.float64))[place])
        return results

    def _design(self, num_features: int) -> Design:
        return Design()

    def _check_settings(self) -> None:
        """Raise InvalidInputError for settings out of range."""
        require(self.epochs is None or self.epochs >= 1, "epochs of None or at least 1", self.epochs)
        require(self.batch_size >= 2, "batch_size of at least 2 (one has no variance)", self.batch_size)
        require(0 < self.learning_rate < math.inf, "a positive learning_rate", self.learning_rate)
        require(0 <= self.weight_decay < math.inf, "a weight_decay of at least 0", self.weight_decay)
        if self.dtype not in _DTYPES:
            raise unknown_name("dtype", self.dtype, _DTYPES)
        self._design(1)


HeadT = TypeVar("HeadT", bound=_Head)


@_settings
class LinearProbe(_Head):
    """Linear probe (LP): a linear classifier on the features as they are, trained with cross-entropy.

    Kaiming-uniform weights, zero bias, no feature normalisation; defaults are those of the authors' commands.
    epochs: passes over the data; None is 30, or more where 30 would give fewer than 500 steps (N ≤ 1,066 at batch 64),
    too few to leave the random start. batch_size: samples per step, at least 2; a last batch of one sample joins the
    one before. learning_rate: at the start, cosine to 0 per step. weight_decay: AdamW's. random_state: as in
    scikit-learn, of weights and order. device, dtype: where and in what ("float32", "float64") to train; predictions
    are computed in float64. verbose: show a progress bar.

    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> y = np.where(X[:, 0] + X[:, 1] > 0, "cat", "dog")
    >>> probe = LinearProbe().fit(X, y)
    >>> probe.predict_proba(X).shape, probe.score(X, y) > 0.95
    ((200, 2), True)
    """

    learning_rate: float = 1e-2


@_settings
class MLPTune(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Head):
    """MLP tuning: Z = g(F) with a small MLP g, and a linear classifier on Z, trained with cross-entropy.

    recipe: "paper" has g = Linear(D, h)–ReLU–Linear(h, D) with h = D; "reference" (the authors' code) has h = 4D and
    g(f) = s ⊙ MLP(f) + f with a learned s (D,) that starts at 1, MLP = Linear(D, h)–BatchNorm–ReLU–Linear(h, D).
    hidden: h; None is the recipe's, but at least 64; a tuple holds the widths of several hidden layers, () has none.
    Other parameters: see `LinearProbe`. `transform` gives Z, with the names "mlptune0", … if these are asked for.

    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> y = X[:, 0] * X[:, 1] > 0
    >>> MLPTune().fit(X, y).transform(X).shape
    (200, 8)
    """

    recipe: Recipe = "paper"
    hidden: int | Sequence[int] | None = None

    def transform(self, X: Any) -> Float[np.ndarray, "n d"]:
        """Return the tuned features Z = g(X), float64 (N, D); X is (N, D)."""
        return self._infer(X, "features").numpy()

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_

    def _design(self, num_features: int) -> Design:
        if self.recipe not in TERM_WEIGHTS:
            raise unknown_name("recipe", str(self.recipe), TERM_WEIGHTS)
        default = max(_LEAST_HIDDEN, num_features if self.recipe == "paper" else 4 * num_features)
        hidden = default if self.hidden is None else self.hidden
        widths = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
        require(all(width >= 1 for width in widths), "hidden of at least 1", self.hidden)
        return Design(self.recipe, widths)


@_settings
class NMTune(MLPTune):
    """NMTune: MLP tuning whose loss also shapes the features, L = L_CE + w₁·L_MSE + w₂·L_COV + w₃·L_SVD.

    Chen et al., ICLR 2024, section 4.1; the terms are `nmtune_terms` of each batch. weights: None is the recipe's
    (`TERM_WEIGHTS`); one number is the paper's λ, the weight of the sum; three numbers weigh (mse, cov, svd). With
    weights=0 it is `MLPTune`, to the bit. Other parameters: see `MLPTune` and `LinearProbe`.

    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> y = X[:, 0] * X[:, 1] > 0
    >>> NMTune(weights=0.1).fit(X, y).transform(X).shape
    (200, 8)
    """

    weights: float | tuple[float, float, float] | None = None

    def _design(self, num_features: int) -> Design:
        return super()._design(num_features)._replace(weights=term_weights(self.weights, self.recipe))


def fit_heads(
    X: Any, y: ArrayLike, heads: Iterable[HeadT], *, sample_masks: Iterable[Mask] | None = None
) -> list[HeadT]:
    """Return a fitted clone of each head, all trained on the features X (N, D) with labels y (N,).

    `sample_masks` has for each head the rows that are its training set, bool (N,), or None for all of them. Heads of
    one shape (class, recipe, width, epochs, batch size, number of samples) train side by side; seeds, weights of the
    terms, learning rates and weight decays are free. Each result equals fitting that head alone on its rows, but for
    rounding, which training amplifies: probabilities agree to a relative 1e-5 in float64, an absolute 2e-3 in float32.
    Raises what `fit` raises, and InvalidInputError for masks that do not fit X or heads, and for other classifiers.

    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> y = X[:, 0] > 0
    >>> [head.weights for head in fit_heads(X, y, [NMTune(weights=w, epochs=1) for w in (0.0, 0.1)])]
    [0.0, 0.1]
    """
    heads = list(heads)
    for head in heads:
        if not isinstance(head, _Head):
            raise InvalidInputError(f"Expected LinearProbe, MLPTune or NMTune, got {head!r:.80}; call its own `fit`.")
    fitted = [clone(head) for head in heads]
    masks = [None] * len(fitted) if sample_masks is None else list(sample_masks)
    if len(masks) != len(fitted):
        raise InvalidInputError(f"Expected one sample mask per head, got {len(masks)} for {len(fitted)} heads.")
    fit_together(fitted, X, y, masks)
    return fitted
