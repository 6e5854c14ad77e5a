"""Label noise of an exact ratio, nested in the ratio and decided by sample id, as records: N samples, K classes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.noise.draws import Ids, changed_count, hash_ids

ClassMap = Mapping[int, int] | None
Matrix = NDArray[np.float64]
KINDS = ("uniform", "asymmetric", "transition")


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """What was flipped: labels before and after (N,) int64, mask (N,) bool, P(noisy j | clean i) (K, K) float64."""

    clean: Int64[np.ndarray, " n"]
    noisy: Int64[np.ndarray, " n"]
    mask: Bool[np.ndarray, " n"]
    requested_ratio: float
    realised_ratio: float
    kind: str
    transition: Float64[np.ndarray, "k k"]
    seed: int


def inject_label_noise(
    labels: ArrayLike,
    ratio: float,
    *,
    num_classes: int,
    kind: str = "uniform",
    seed: int,
    ids: Ids = None,
    class_map: ClassMap = None,
    transition: ArrayLike | None = None,
) -> LabelNoise:
    """Give exactly ⌊ratio · N + ½⌋ of the integer labels (N,) a different class; the paper's γ is `ratio`.

    "uniform" draws the new class from the K−1 others. "asymmetric" sends class k to `class_map[k]` (classes that are
    not in the map keep their labels; default: every k to k+1, the last to 0). "transition" takes a row-stochastic
    (K, K) matrix T: T[k, j] for j ≠ k are the odds of the new class j, 1 − T[k, k] the odds that a sample of class k is
    flipped, relative to other classes; `ratio` alone sets how many are.
    `ids` (N,), unique texts or integers, decide the draw; without them the position does. Noise is nested: what is
    flipped at one ratio is flipped to the same class at any larger one (samples go in the order of −ln(u)/weight,
    Efraimidis and Spirakis 2006). The record's `transition` is the expected P(noisy = j | clean = i) at that ratio.

    Raises InvalidInputError for a bad argument, or when fewer labels can change than `ratio` asks for.

    >>> noise = inject_label_noise([0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 0.3, num_classes=3, seed=0)
    >>> int(noise.mask.sum()), bool((noise.noisy != noise.clean).sum() == 3), noise.transition[0].round(2).tolist()
    (3, True, [0.7, 0.15, 0.15])
    """
    clean = _checked_labels(labels, num_classes)
    count = changed_count(ratio, len(clean))
    rates = _flip_rates(kind, num_classes, class_map, transition)
    sample_weights = rates.sum(axis=1)[clean]
    if count > (eligible := int(np.count_nonzero(sample_weights))):
        raise InvalidInputError(
            f"Expected at most {eligible} of {len(clean)} labels to change, all whose class {kind!r} noise can change, "
            f"got ratio {ratio}, {count} labels; lower the ratio or let more classes change."
        )
    selection, target = hash_ids(ids, len(clean), seed, "label")
    with np.errstate(divide="ignore"):
        waiting_time = -np.log(_uniform(selection)) / sample_weights
    chosen = np.lexsort((target, waiting_time))[:count]
    noisy = clean.copy()
    noisy[chosen] = _draw_classes(clean[chosen], _uniform(target[chosen]), rates)
    expected = _expected_transition(rates, np.bincount(clean, minlength=num_classes), count)
    mask = noisy != clean
    return LabelNoise(clean, noisy, mask, float(ratio), float(mask.mean()), kind, expected, int(seed))


def _checked_labels(labels: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    if not isinstance(num_classes, Integral) or num_classes < 2:
        raise InvalidInputError(f"Expected num_classes to be an integer of at least 2, got {num_classes!r}.")
    array = np.asarray(labels)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InvalidInputError(f"Expected integer labels of shape (N,), N ≥ 1, got {array.dtype} of {array.shape}.")
    if array.min() < 0 or array.max() >= num_classes:
        came = f"{array.min()}..{array.max()}"
        raise InvalidInputError(f"Expected labels in 0..{num_classes - 1}, got {came}; correct them or num_classes.")
    return array.astype(np.int64)


def _flip_rates(kind: str, num_classes: int, class_map: ClassMap, transition: ArrayLike | None) -> Matrix:
    """Return (K, K) rates of class i becoming j with a zero diagonal; a row's sum is the weight of its class."""
    if kind not in KINDS:
        raise unknown_name("noise kind", str(kind), KINDS)
    if (class_map is not None and kind != "asymmetric") or (transition is not None) != (kind == "transition"):
        raise InvalidInputError(
            "Expected class_map only with kind='asymmetric', and transition with and only with kind='transition', got "
            f"kind={kind!r} with class_map={class_map!r:.40} and transition={transition!r:.40}."
        )
    if kind == "uniform":
        return (1 - np.eye(num_classes)) / (num_classes - 1)
    return _map_rates(num_classes, class_map) if kind == "asymmetric" else _matrix_rates(num_classes, transition)


def _map_rates(num_classes: int, class_map: ClassMap) -> Matrix:
    classes, rates = range(num_classes), np.zeros((num_classes, num_classes))
    following = {label: (label + 1) % num_classes for label in classes}
    for clean, noisy in (following if class_map is None else class_map).items():
        if clean not in classes or noisy not in classes or clean == noisy:
            expected = f"Expected class_map to send classes 0..{num_classes - 1} to others"
            raise InvalidInputError(f"{expected}, got {clean!r} → {noisy!r}; leave out classes that stay as they are.")
        rates[int(clean), int(noisy)] = 1
    return rates


def _matrix_rates(num_classes: int, transition: ArrayLike | None) -> Matrix:
    matrix = np.array(transition, dtype=np.float64)
    if matrix.shape != (num_classes, num_classes):
        raise InvalidInputError(f"Expected transition of shape {(num_classes, num_classes)}, got {matrix.shape}.")
    for row, odds in enumerate(matrix):
        if not (odds.min() >= 0 and math.isclose(odds.sum(), 1, abs_tol=1e-5)):  # neither holds for NaN
            raise InvalidInputError(
                f"Expected probabilities with sum 1 in each row of transition, got {odds.min()}..{odds.max()} with sum "
                f"{odds.sum()} in row {row}; normalise it."
            )
    np.fill_diagonal(matrix, 0)
    return matrix


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map 64-bit words to the open interval (0, 1): 52 bits and a half, which no rounding takes to 0 or 1."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52


def _draw_classes(clean: NDArray[np.int64], uniforms: NDArray[np.float64], rates: Matrix) -> NDArray[np.int64]:
    """Draw a new class for each clean one by the inverse of its row's cumulative distribution."""
    noisy = np.empty_like(clean)
    for label in np.unique(clean):
        possible = np.flatnonzero(rates[label])
        cumulative = np.cumsum(rates[label, possible])
        rows = clean == label
        # Without the last value, 1, rounding cannot lead past the last class that is possible.
        position = np.searchsorted(cumulative[:-1] / cumulative[-1], uniforms[rows], side="right")
        noisy[rows] = possible[position]
    return noisy


def _expected_transition(rates: Matrix, class_counts: NDArray[np.int64], count: int) -> Matrix:
    """Return P(noisy = j | clean = i) (K, K) when the `count` samples of the smallest −ln(u)/weight are flipped.

    Those are the samples before a time t: class k is flipped with 1 − exp(−t w_k), and Σ N_k (1 − exp(−t w_k)) = count.
    """
    weights = rates.sum(axis=1)
    present = (class_counts > 0) & (weights > 0)
    numbers, rates_out = class_counts[present], weights[present]
    if count in (0, numbers.sum()):
        flipped = ((weights > 0) & (count > 0)).astype(np.float64)
    else:
        fastest, slowest = rates_out.max(), rates_out.min()
        time = -math.log1p(-count / numbers.sum()) / fastest
        if not math.isclose(fastest, slowest):
            latest = time * fastest / slowest * (1 + 1e-9)
            time = brentq(lambda t: count + numbers @ np.expm1(-t * rates_out), time * (1 - 1e-9), latest, rtol=1e-14)
        flipped = -np.expm1(-time * weights)
    return rates / np.where(weights > 0, weights, 1)[:, None] * flipped[:, None] + np.diag(1 - flipped)
