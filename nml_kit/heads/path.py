"""The solutions of many penalties, each started from the curve of those that are known."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from nml_kit.heads.newton import LogisticObjective, Point, Solutions, minimise

# Solutions lie on a smooth curve of log C; a little short of its tangent is safer than beyond it.
_EXTRAPOLATION = 0.8
_BYTES_AT_ONCE = 1 << 30  # of logits, probabilities and their trials: five arrays (P, K, N)


def follow(
    objective: LogisticObjective, start: Point, log_C: Tensor, penalties: Tensor, *, tol: float, max_iter: int
) -> Solutions:
    """Minimise for P penalties at ascending `log_C` (P,), the first from `start` (one point).

    Every second penalty is solved in turn, from the extrapolated curve of those before; the others side by side, from
    the curve interpolated between their neighbours, which is so close that one or two steps suffice.
    """
    count = len(penalties)
    knots = np.unique([*range(0, count, 2), count - 1])
    between = np.setdiff1d(np.arange(count), knots)
    solve = partial(minimise, objective, tol=tol, max_iter=max_iter)
    parts: list[Solutions] = []
    for knot, place in enumerate(knots):
        known = [part.point for part in parts[-2:]] or [start]
        guess = _extrapolated(known, log_C[knots[max(knot - 2, 0) : knot + 1]])
        parts.append(solve(guess, penalties[place : place + 1]))
    curve = _joined(parts).point
    for chunk in _chunks(objective, between):
        guess = Point(*(_interpolated(log_C[knots], part, log_C[chunk]) for part in curve))
        parts.append(solve(guess, penalties[chunk]))
    return _ordered(_joined(parts), np.argsort([*knots, *between]))


def _extrapolated(known: list[Point], log_C: Tensor) -> Point:
    """The last of one or two points, moved along the line through both to the last of `log_C`."""
    if len(known) == 1:
        return known[0]
    before, last = known
    change = last.plus(before, torch.tensor([-1.0], dtype=torch.float64))
    return last.plus(change, _EXTRAPOLATION * (log_C[2:] - log_C[1:2]) / (log_C[1:2] - log_C[:1]))


def _interpolated(log_C: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    return torch.from_numpy(CubicSpline(log_C.numpy(), values.numpy())(wanted.numpy()))


def _chunks(objective: LogisticObjective, places: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of the penalties whose working memory is bounded."""
    bytes_each = 5 * len(objective.X) * objective.num_classes * objective.X.element_size()
    size = max(1, _BYTES_AT_ONCE // bytes_each)
    for start in range(0, len(places), size):
        yield places[start : start + size]


def _joined(parts: list[Solutions]) -> Solutions:
    point = Point(torch.cat([part.point.weights for part in parts]), torch.cat([part.point.bias for part in parts]))
    return Solutions(point, torch.cat([part.steps for part in parts]), torch.cat([part.converged for part in parts]))


def _ordered(found: Solutions, order: np.ndarray) -> Solutions:
    places = torch.from_numpy(order)
    return Solutions(found.point.of(places), found.steps[places], found.converged[places])
