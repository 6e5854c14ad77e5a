"""The parts of each claim as contrasts: weights of the cells (method, ratio), stated before any result is seen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nml_kit.inference.cells import Cell
from nml_kit.inference.names import ratio_label

SLIGHT_UP_TO = 0.1  # the paper's "5 %, sometimes 10 %"
MARGIN = 0.005  # of accuracy: one test sample in 200
_FEWEST_FOR_TREND = 3
Weights = dict[Cell, float]


@dataclass(frozen=True)
class Part:
    """One estimand: the weighted sum of a metric's cells on the tasks of a protocol.

    `direction` is the claimed sign of estimand − `null`, 0 for either. `guards`, by name, are what must not clearly go
    the other way for the claim to hold: the single steps of a trend, the single ratios of a mean over ratios.
    `missing` says why there are no weights.
    """

    claim: str
    protocol: str
    metric: str
    contrast: str
    direction: int
    weights: Weights
    guards: dict[str, Weights]
    null: float = 0.0
    missing: str = ""


def parts_of(ratios: Sequence[float], protocol: str, metric: str) -> list[Part]:
    """All parts of C1 to C6 about this protocol and metric, for a task that has these ratios (0.0 among them)."""
    made = (*_c1(ratios), *_c2(ratios), *_c3(ratios), *_c4(ratios), *_c5(ratios), *_c6(ratios))
    return [part for part in made if (part.protocol, part.metric) == (protocol, metric)]


def slight_ratio(ratios: Sequence[float]) -> float | None:
    """The lowest noise ratio, if it is at most SLIGHT_UP_TO: one declared choice, not the best of several.

    >>> slight_ratio([0.0, 0.05, 0.1]), slight_ratio([0.0, 0.3])
    (0.05, None)
    """
    lowest = min((ratio for ratio in ratios if ratio > 0), default=1.0)
    return lowest if lowest <= SLIGHT_UP_TO else None


def _c1(ratios: Sequence[float]) -> Iterator[Part]:
    slight, highest = slight_ratio(ratios), max(ratios)
    yield _difference("C1", "ID", "accuracy", "LP", slight, 0.0, 1)
    if slight == highest:
        yield _without("C1", "ID", "accuracy", "LP: highest − slight", -1, "no ratio above the slight one")
    else:
        yield _difference("C1", "ID", "accuracy", "LP", highest, slight, -1)


def _c2(ratios: Sequence[float]) -> Iterator[Part]:
    for ratio in sorted(ratios)[1:]:
        yield _difference("C2", "OOD", "accuracy", "LP", ratio, 0.0, -1)
    yield _trend("C2", "OOD", "accuracy", ratios, -1)


def _c3(ratios: Sequence[float]) -> Iterator[Part]:
    yield _difference("C3", "ID", "sve", "LP", slight_ratio(ratios), 0.0, 1)
    yield _trend("C3", "ID", "sve", ratios, 1)


def _c4(ratios: Sequence[float]) -> Iterator[Part]:
    yield _trend("C4", "OOD", "lsvr", ratios, 0)


def _c5(ratios: Sequence[float]) -> Iterator[Part]:
    pairs = (("NMTune", "LP"), ("NMTune", "MLP"), ("MLP", "LP"))
    for better, worse in pairs:
        for protocol in ("ID", "OOD"):
            yield _between_methods(protocol, "accuracy", better, worse, ratios, 1)
    for better, worse in pairs[:2]:
        yield _between_methods("ID", "sve", better, worse, ratios, 1)
        yield _between_methods("OOD", "lsvr", better, worse, ratios, -1)


def _c6(ratios: Sequence[float]) -> Iterator[Part]:
    yield _difference("C6", "ID", "accuracy", "NMTune", 0.0, slight_ratio(ratios), 1, null=-MARGIN)


def _difference(
    claim: str, protocol: str, metric: str, method: str, ratio: float | None, baseline: float | None, direction: int,
    *, null: float = 0.0,
) -> Part:  # fmt: skip
    """One ratio minus another; None is a slight ratio that the study has not."""
    if ratio is None or baseline is None:
        names = [("slight" if one is None else "clean" if one == 0 else "highest") for one in (ratio, baseline)]
        missing = f"no noise ratio up to {ratio_label(SLIGHT_UP_TO)}"
        return _without(claim, protocol, metric, f"{method}: {' − '.join(names)}", direction, missing)
    name = f"{method}: {ratio_label(ratio)} − {ratio_label(baseline)}"
    weights = {(method, ratio): 1.0, (method, baseline): -1.0}
    return Part(claim, protocol, metric, name, direction, weights, {}, null)


def _without(claim: str, protocol: str, metric: str, name: str, direction: int, missing: str) -> Part:
    return Part(claim, protocol, metric, name, direction, {}, {}, missing=missing)


def _trend(claim: str, protocol: str, metric: str, ratios: Sequence[float], direction: int) -> Part:
    """The line fitted to the ratios' ranks, as its change from the first to the last; guarded by the single steps."""
    ordered = sorted(ratios)
    name = "LP: trend over ratios"
    if len(ordered) < _FEWEST_FOR_TREND:
        return _without(claim, protocol, metric, name, direction, f"a trend takes {_FEWEST_FOR_TREND} ratios")
    ranks = np.arange(len(ordered)) - (len(ordered) - 1) / 2
    slopes = ranks / (ranks @ ranks) * (len(ordered) - 1)
    weights = {("LP", ratio): float(slope) for ratio, slope in zip(ordered, slopes, strict=True)}
    guards = {
        f"from {ratio_label(before)} to {ratio_label(after)}": {("LP", after): 1.0, ("LP", before): -1.0}
        for before, after in pairwise(ordered)
    }
    return Part(claim, protocol, metric, name, direction, weights, guards)


def _between_methods(
    protocol: str, metric: str, better: str, worse: str, ratios: Sequence[float], direction: int
) -> Part:
    """The mean over ratios of one method minus another; guarded by the single ratios."""
    guards = {f"at {ratio_label(ratio)}": {(better, ratio): 1.0, (worse, ratio): -1.0} for ratio in sorted(ratios)}
    weights = {cell: weight / len(guards) for guard in guards.values() for cell, weight in guard.items()}
    return Part("C5", protocol, metric, f"{better} − {worse}", direction, weights, guards)
