"""An exact linear probe: L2-penalised logistic regression solved to its minimum, for a whole path of penalties.

N samples, D features, K classes, P penalties. The objective and its parameters are those of scikit-learn's
`LogisticRegression` (the intercept is not penalised; ‖W‖² is that of `coef_`, one row if K = 2):

    C · Σᵢ −ln p(yᵢ | xᵢ) + ½ ‖W‖².
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from nml_kit.errors import InvalidInputError
from nml_kit.heads.inputs import encoded, on_host, require, require_finite

Array = NDArray[Any]
FloatArray = NDArray[np.float64]

_DTYPES = (np.float32, np.float64)  # others become float32's or float64's: float16 and integers the first


class RegularisationPath(NamedTuple):
    """The solutions of P penalties, in the order of `Cs`; coefficients and intercepts have one row if K = 2.

    `n_iter` counts iterations of the solver; `classes` orders the rows.
    """

    Cs: Float[np.ndarray, " p"]
    coefficients: Float[np.ndarray, "p k d"]
    intercepts: Float[np.ndarray, "p k"]
    n_iter: Int[np.ndarray, " p"]
    classes: Array


def regularisation_path(
    X: Any, y: ArrayLike, Cs: int | Sequence[float] | FloatArray = 20, *, tol: float = 1e-4, max_iter: int = 1000
) -> RegularisationPath:
    """Return the logistic-regression coefficients of every penalty strength in `Cs`, each solved to its minimum.

    X is (N, D), an array, tensor or memory-map; float64 is computed in float64, anything else in float32. y is (N,)
    labels of any kind. Cs: inverse penalties, or how many to space evenly in log C from 1e-4 to 1e4. tol: ten times
    what remains of the gradient of the mean loss, for features of unit scale. Warns (`ConvergenceWarning`) where
    `max_iter` iterations do not suffice. Raises InvalidInputError for NaN or infinite features, fewer than two classes
    or settings out of range, and ValueError when X and y differ in length.

    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> y = np.where(X[:, 0] + X[:, 1] > 0, "cat", "dog")
    >>> regularisation_path(X, y, [0.1, 1.0, 10.0]).coefficients.shape
    (3, 1, 8)
    """
    probe, grid = ExactLinearProbe(tol=tol, max_iter=max_iter), _grid(Cs)
    X, codes = probe._encoded(X, y)
    return probe._path(X, codes, grid)


@dataclass(kw_only=True, eq=False, repr=False)
class ExactLinearProbe(ClassifierMixin, BaseEstimator):
    """Exact linear probe: L2-penalised logistic regression on the features as they are, solved to its minimum.

    C: inverse penalty, as in scikit-learn's `LogisticRegression`. Cs: None takes C; inverse penalties, or how many to
    space evenly in log C from 1e-4 to 1e4, choose the best of them in place of C: the most accurate on a part carved
    from the training data, of equals the smallest, which is then fitted to all of it. validation_fraction: that part of
    each class; one sample at least stays for training. tol, max_iter: see `regularisation_path`. random_state: draws
    the part. `fit` sets `coef_` (K, D) and `intercept_` (K,), or one row if K = 2, `classes_` (K,), `C_`, `n_iter_` (of
    the final fit) and, with Cs, `Cs_` (P,) and `validation_scores_` (P,).

    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> y = np.where(X[:, 0] + X[:, 1] > 0, "cat", "dog")
    >>> probe = ExactLinearProbe(Cs=5).fit(X, y)
    >>> probe.predict_proba(X).shape, probe.validation_scores_.shape, probe.score(X, y) > 0.95
    ((200, 2), (5,), True)
    """

    C: float = 1.0
    Cs: int | Sequence[float] | FloatArray | None = None
    validation_fraction: float = 0.2
    tol: float = 1e-4
    max_iter: int = 1000
    random_state: Any = 0

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fit the probe to features X (N, D) and labels y (N,), and return it; see `regularisation_path`."""
        require(0 < self.validation_fraction < 1, "a validation_fraction between 0 and 1", self.validation_fraction)
        grid = _grid([self.C] if self.Cs is None else self.Cs)
        X, codes = self._encoded(X, y)
        self.C_ = float(grid[0]) if self.Cs is None else self._choose(X, codes, grid)
        path = self._path(X, codes, np.array([self.C_]))
        self.coef_, self.intercept_ = path.coefficients[0], path.intercepts[0]
        self.n_iter_ = int(path.n_iter[0])
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, "..."]:
        """Return the logits, float64 (N, K), or (N,) of the second class if K = 2; X is (N, D)."""
        logits = self._logits(X)
        return logits[:, 1] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:
        """Return the class probabilities, float64 (N, K), in the order of `classes_`; X is (N, D)."""
        probabilities: FloatArray = softmax(self._logits(X), axis=1)
        return probabilities

    def predict(self, X: Any) -> Array:
        """Return the most probable label of each row of X (N, D), in the dtype of the labels passed to `fit`."""
        codes = self._logits(X).argmax(axis=1)
        return self.classes_[codes]

    def _logits(self, X: Any) -> FloatArray:
        """Return the logits (N, K); those of the first of two classes are 0."""
        check_is_fitted(self)
        X = validate_data(self, on_host(X), dtype=_DTYPES, reset=False, ensure_all_finite=False)
        require_finite(X)
        logits: FloatArray = X.astype(np.float64) @ self.coef_.T + self.intercept_
        return np.pad(logits, ((0, 0), (1, 0))) if len(self.classes_) == 2 else logits

    def _encoded(self, X: Any, y: Any) -> tuple[Array, Int[np.ndarray, " n"]]:
        """Check the settings of the solver, X and y; set `classes_`; return X and the labels as codes."""
        require(0 < self.tol < 1, "a tol between 0 and 1", self.tol)
        require(self.max_iter >= 1, "max_iter of at least 1", self.max_iter)
        X, y = validate_data(self, on_host(X), on_host(y), dtype=_DTYPES, ensure_all_finite=False)
        require_finite(X)
        check_classification_targets(y)
        self.classes_, codes = encoded(y)
        return X, codes

    def _choose(self, X: Array, codes: Int[np.ndarray, " n"], Cs: FloatArray) -> float:
        """Set `Cs_` and `validation_scores_`; return the best C."""
        held_out = _held_out(codes, self.validation_fraction, check_random_state(self.random_state))
        path = self._path(X[~held_out], codes[~held_out], Cs)
        logits = np.einsum("nd,pkd->pnk", X[held_out], path.coefficients, optimize=True) + path.intercepts[:, None]
        predicted = (logits[..., 0] > 0) if len(self.classes_) == 2 else logits.argmax(axis=2)
        self.Cs_, self.validation_scores_ = Cs, (predicted == codes[held_out]).mean(axis=1)
        return float(Cs[self.validation_scores_ == self.validation_scores_.max()].min())

    def _path(self, X: Array, codes: Int[np.ndarray, " n"], Cs: FloatArray) -> RegularisationPath:
        """Solve for every penalty, equal ones once, each from the solution of the next smaller C."""
        # Centred and at unit scale the same problem needs fewer iterations, and `tol` has a meaning. Measured on
        # features of the shipped digits: 20 penalties take 1.6 times as long as a Newton path of our own did.
        mean = X.mean(axis=0, dtype=np.float64)
        features = X - mean.astype(X.dtype)
        scale = float(np.sqrt(np.square(features, dtype=np.float64).mean())) or 1.0
        features /= scale
        solver = LogisticRegression(tol=self.tol / 10, max_iter=self.max_iter, warm_start=True)
        distinct, positions = np.unique(Cs, return_inverse=True)
        coefficients, intercepts, n_iter = [], [], []
        for C in distinct:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                solver.set_params(C=C * scale**2).fit(features, codes)
            coefficients.append(solver.coef_.astype(np.float64) / scale)
            intercepts.append(solver.intercept_ - coefficients[-1] @ mean)
            n_iter.append(int(solver.n_iter_[0]))
        missed = distinct[np.array(n_iter) >= self.max_iter]
        if len(missed):
            warnings.warn(
                f"Expected convergence within max_iter={self.max_iter} iterations, got none at C = "
                f"{', '.join(f'{C:g}' for C in missed)}. Raise max_iter or tol, use smaller C, or scale the features.",
                ConvergenceWarning,
                stacklevel=3,
            )
        W, b, iterations = (np.stack(values)[positions] for values in (coefficients, intercepts, n_iter))
        return RegularisationPath(Cs, W, b, iterations, self.classes_)


def _held_out(codes: Array, fraction: float, random: np.random.RandomState) -> NDArray[np.bool_]:
    """Draw the validation part: a mask (N,) that leaves at least one sample of each class."""
    mask = np.zeros(len(codes), dtype=bool)
    for code in range(codes.max() + 1):
        members = random.permutation(np.flatnonzero(codes == code))
        mask[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
    if not mask.any():
        raise InvalidInputError(
            f"Expected samples to validate on, got none from {len(codes)} with validation_fraction={fraction}. "
            "Raise it, or give one C and Cs=None."
        )
    return mask


def _grid(Cs: int | Sequence[float] | FloatArray) -> FloatArray:
    if isinstance(Cs, int | np.integer):
        require(Cs >= 1, "a number of Cs of at least 1", Cs)
        return np.logspace(-4, 4, int(Cs))
    grid = np.array(Cs, dtype=np.float64)
    ok = grid.ndim == 1 and grid.size > 0 and bool(np.all(np.isfinite(grid) & (grid > 0)))
    require(ok, "C to be positive and finite, and Cs to be such numbers or how many of them", Cs)
    return grid
