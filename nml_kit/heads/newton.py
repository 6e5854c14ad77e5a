"""Penalised multinomial logistic regression for many penalties at once, by a preconditioned Newton method.

N samples, D features, K classes, P penalties α, X (N, D) with centred columns, and for each penalty W (K, D), b (K,)
and the probabilities p (K, N):

    f(W, b) = (1/N) Σᵢ −ln p_yᵢ,ᵢ + (α/2) ‖W‖²,     Hessian = (1/N) Σᵢ (diag pᵢ − pᵢ pᵢᵀ) ⊗ xᵢ xᵢᵀ + α I.

A Newton step is solved by conjugate gradients, which need only products with X. One product with a few classes is bound
by reading X; those of all penalties together are one wide product, several times faster. The preconditioner is the
Kronecker product A ⊗ G of the mean class part (of each penalty) and the mean feature part weighted by 1 − ‖pᵢ‖²
(shared), plus α: small eigendecompositions.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK_ROWS = 1024  # a block of X stays in cache between its two products
_GRAM_ROWS_PER_FEATURE = 8  # enough rows for a preconditioner; all of them would cost many products
_MOST_PRODUCTS = 300  # in one Newton step
_MOST_HALVINGS = 30


class Point(NamedTuple):
    """Weights (P, K, D) and biases (P, K), float64: positions, directions or gradients, one for each penalty."""

    weights: Tensor
    bias: Tensor

    def dot(self, other: "Point") -> Tensor:
        """The P inner products."""
        return (self.weights * other.weights).sum(dim=(1, 2)) + (self.bias * other.bias).sum(dim=1)

    def plus(self, other: "Point", factor: Tensor) -> "Point":
        """Add `factor` (P,) times the other."""
        return Point(
            torch.addcmul(self.weights, other.weights, factor[:, None, None]),
            torch.addcmul(self.bias, other.bias, factor[:, None]),
        )

    def of(self, chosen: Tensor) -> "Point":
        """Those of the chosen penalties (a mask or positions)."""
        return Point(self.weights[chosen], self.bias[chosen])


@dataclass(frozen=True)
class Solutions:
    """For each penalty the minimiser, the number of Newton steps, and whether what remains is below the tolerance."""

    point: Point
    steps: Tensor
    converged: Tensor


class _State(NamedTuple):
    """Where P searches are: positions, logits and probabilities (P, K, N), values and penalties (P,)."""

    point: Point
    logits: Tensor
    value: Tensor
    probabilities: Tensor
    penalties: Tensor

    def of(self, chosen: Tensor) -> "_State":
        return _State(self.point.of(chosen), *(part[chosen] for part in self[1:]))


class LogisticObjective:
    """f of one data set: X (N, D) float32 or float64 with centred columns, codes (N,) in 0 … K−1."""

    def __init__(self, X: Tensor, codes: Tensor, num_classes: int) -> None:
        self.X, self.codes, self.num_classes = X, codes, num_classes

    def origin(self, num_penalties: int) -> Point:
        shape = num_penalties, self.num_classes, self.X.shape[1]
        return Point(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[:2], dtype=torch.float64))

    def logits(self, point: Point) -> Tensor:
        logits = point.weights.to(self.X.dtype).flatten(0, 1) @ self.X.T
        return logits.view(*point.bias.shape, -1).add_(point.bias.to(self.X.dtype)[..., None])

    def value(self, logits: Tensor, weights: Tensor, penalties: Tensor) -> tuple[Tensor, Tensor]:
        """Return f (P,) and the probabilities (P, K, N)."""
        own = self._own_class(logits)
        shifted = logits - logits.amax(dim=1, keepdim=True)
        margin = shifted.gather(1, own)
        probabilities = shifted.exp_()
        own_share = margin.exp()
        others = probabilities.scatter_(1, own, 0.0).sum(dim=1, keepdim=True)
        # log1p keeps the digits of a loss near zero, where the own class is the largest and its share exactly 1.
        losses = torch.log1p(others + (own_share - 1)).sub_(margin)
        probabilities.scatter_(1, own, own_share).div_(others.add_(own_share))
        loss = losses.sum(dim=(1, 2), dtype=torch.float64) / len(self.X)
        return loss + penalties / 2 * weights.square().sum(dim=(1, 2)), probabilities

    def gradient(self, state: _State) -> Point:
        own = self._own_class(state.probabilities)
        residuals = state.probabilities.scatter_add(1, own, state.probabilities.new_full((1, 1, 1), -1).expand_as(own))
        total = self.origin(len(residuals))
        for rows in self._blocks():
            self._add_products(total, rows, residuals[:, :, rows])
        return self._averaged(total, state.point, state.penalties)

    def hessian_product(self, probabilities: Tensor, direction: Point, penalties: Tensor) -> Point:
        weights = direction.weights.to(self.X.dtype).flatten(0, 1)
        bias = direction.bias.to(self.X.dtype)[..., None]
        total = self.origin(len(penalties))
        for rows in self._blocks():
            shares = probabilities[:, :, rows]
            change = (weights @ self.X[rows].T).view_as(shares).add_(bias).mul_(shares)
            change.addcmul_(shares, change.sum(dim=1, keepdim=True), value=-1)
            self._add_products(total, rows, change)
        return self._averaged(total, direction, penalties)

    @cached_property
    def covariance_eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,), float64, and eigenvectors (D, D) of XᵀX / N, from a part of the rows if they are many."""
        rows = self.X[:: max(1, len(self.X) // (_GRAM_ROWS_PER_FEATURE * self.X.shape[1]))]
        values, vectors = torch.linalg.eigh((rows.T @ rows).double() / len(rows))
        return values.clamp_min_(0), vectors.to(self.X.dtype)

    def _own_class(self, like: Tensor) -> Tensor:
        return self.codes.expand(len(like), 1, -1)

    def _add_products(self, total: Point, rows: slice, values: Tensor) -> None:
        """Add values · X and the sums of values (P, K, n) over these rows, in float64 from block to block."""
        total.weights.add_((values.flatten(0, 1) @ self.X[rows]).view_as(total.weights))
        total.bias.add_(values.sum(dim=2))

    def _averaged(self, total: Point, at: Point, penalties: Tensor) -> Point:
        weights = total.weights.div_(len(self.X)).addcmul_(at.weights, penalties[:, None, None])
        return Point(weights, total.bias.div_(len(self.X)))

    def _blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK_ROWS) for start in range(0, len(self.X), _BLOCK_ROWS)]


class _KroneckerPreconditioner:
    """Approximate inverse Hessians, (A ⊗ G + α)⁻¹ on the weights and A⁻¹ on the bias."""

    def __init__(self, objective: LogisticObjective, probabilities: Tensor, penalties: Tensor) -> None:
        mean = probabilities.mean(dim=2, dtype=torch.float64)
        products = (probabilities @ probabilities.mT).double() / len(objective.X)
        class_values, self.class_basis = torch.linalg.eigh(torch.diag_embed(mean) - products)
        class_values = class_values.clamp_min_(0)
        feature_values, self.feature_basis = objective.covariance_eigen
        self.curvature = class_values[:, :, None] * feature_values + penalties[:, None, None]
        # The sum of the biases has no curvature, and no gradient either: any positive number serves.
        least = (1e-4 * class_values.amax(dim=1, keepdim=True)).clamp_min_(torch.finfo(torch.float64).tiny ** 0.5)
        self.bias_curvature = torch.maximum(class_values, least)

    def __call__(self, gradient: Point, chosen: Tensor) -> Point:
        classes = self.class_basis[chosen]
        weights = classes.mT @ self._turned(gradient.weights, self.feature_basis) / self.curvature[chosen]
        weights = classes @ self._turned(weights, self.feature_basis.T)
        bias = classes @ (classes.mT @ gradient.bias[..., None] / self.bias_curvature[chosen][..., None])
        return Point(weights, bias[..., 0])

    def _turned(self, weights: Tensor, basis: Tensor) -> Tensor:
        return (weights.to(basis.dtype).flatten(0, 1) @ basis).view_as(weights).double()


def minimise(objective: LogisticObjective, start: Point, penalties: Tensor, *, tol: float, max_iter: int) -> Solutions:
    """Minimise f for P penalties from `start`, each until a Newton step predicts a decrease of at most `tol` · f."""
    logits = objective.logits(start)
    state = _State(start, logits, *objective.value(logits, start.weights, penalties), penalties)
    rounding = 10 * torch.finfo(objective.X.dtype).eps  # a loss cannot be compared more finely than that
    count = len(penalties)
    found = Solutions(objective.origin(count), torch.full((count,), max_iter), torch.zeros(count, dtype=torch.bool))
    active, precondition = torch.arange(count), None
    for step in range(1, max_iter + 1):
        if precondition is None:
            precondition = _KroneckerPreconditioner(objective, state.probabilities, state.penalties)
        before = state.value
        direction, decrease, slope = _newton_direction(objective, state, precondition, tol * before)
        state, length = _line_search(objective, state, direction, slope, rounding)
        stuck = length == 0
        good = torch.where(stuck, decrease <= rounding * before, (length == 1) & (decrease <= tol * before))
        ended = good | stuck | (step == max_iter)
        if not ended.any():
            continue
        places = active[ended]
        found.point.weights[places], found.point.bias[places] = state.point.of(ended)
        found.steps[places], found.converged[places] = step, good[ended]
        active, state, precondition = active[~ended], state.of(~ended), None
        if not len(active):
            break
    return found


def _line_search(
    objective: LogisticObjective, state: _State, direction: Point, slope: Tensor, rounding: float
) -> tuple[_State, Tensor]:
    """Halve each step until f decreases enough; return the new state and the lengths (P,), 0 where none does."""
    change, length = objective.logits(direction), torch.ones_like(slope)
    for halving in range(_MOST_HALVINGS + 1):
        point = state.point.plus(direction, length)
        logits = torch.addcmul(state.logits, change, length.to(change.dtype)[:, None, None])
        value, probabilities = objective.value(logits, point.weights, state.penalties)
        worse = ~(value <= state.value + 1e-4 * length * slope + rounding * state.value)
        if not worse.any():
            break
        length = torch.where(worse, length / 2 if halving + 1 < _MOST_HALVINGS else 0.0, length)
    return _State(point, logits, value, probabilities, state.penalties), length


def _newton_direction(
    objective: LogisticObjective, state: _State, precondition: _KroneckerPreconditioner, tolerance: Tensor
) -> tuple[Point, Tensor, Tensor]:
    """Return approximate Newton directions, the decreases of f (P,) that their models predict, and their slopes."""
    gradient = objective.gradient(state)
    found, decreases = objective.origin(len(tolerance)), torch.zeros_like(tolerance)
    running, probabilities, penalties = torch.arange(len(tolerance)), state.probabilities, state.penalties
    direction, decrease = objective.origin(len(tolerance)), decreases
    residual = Point(-gradient.weights, -gradient.bias)
    conjugate = precondition(residual, running)
    product = residual.dot(conjugate)
    for count in range(1, _MOST_PRODUCTS + 1):
        image = objective.hessian_product(probabilities, conjugate, penalties)
        curvature = conjugate.dot(image)
        length = torch.where(curvature > 0, product / curvature, 0.0)  # else rounding is all that is left
        direction, residual = direction.plus(conjugate, length), residual.plus(image, -length)
        gain = length * product / 2
        decrease = decrease + gain
        # The rule of Nash and Sofer (1990), on the model's decrease; below a fifth of the tolerance nothing is gained.
        ended = (count * gain <= torch.maximum(decrease / 10, tolerance / 5)) | (count == _MOST_PRODUCTS)
        if ended.any():
            places, rest = running[ended], ~ended
            found.weights[places], found.bias[places] = direction.of(ended)
            decreases[places] = decrease[ended]
            if not rest.any():
                break
            running, probabilities, penalties = running[rest], probabilities[rest], penalties[rest]
            direction, residual, conjugate = direction.of(rest), residual.of(rest), conjugate.of(rest)
            product, decrease, tolerance = product[rest], decrease[rest], tolerance[rest]
        conditioned = precondition(residual, running)
        previous, product = product, residual.dot(conditioned)
        conjugate = conditioned.plus(conjugate, product / previous)
    return found, decreases, gradient.dot(found)
