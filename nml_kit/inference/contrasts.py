"""The contrasts that claims are about: weights of the cells (method, ratio), stated before any result is seen.

For each task, results become cells (method, ratio) × seeds × test samples; a part of a claim is a weighted sum of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from nml_kit.errors import InvalidInputError
from nml_kit.inference.names import METHODS, ratio_label
from nml_kit.inference.statistics import MOST_RANKED, Estimate, paired_estimate, rank_association

SLIGHT_UP_TO = 0.1  # the paper's "5 %, sometimes 10 %"
FEWEST_FOR_TREND = 3
MARGIN = 0.005  # of accuracy: one test sample in 200
ALL_TASKS = "all tasks"
Cell = tuple[str, float]
Weights = dict[Cell, float]
_CELL = ["method", "ratio"]
_GROUP = ["objective", "task", "protocol"]
_IDENTITY = ["profile", "recipe", "noise"]
_SAMPLE_COLUMNS = [*_GROUP, *_CELL, "seed", "sample", "correct"]
_ROW_COLUMNS = [*_GROUP, *_CELL, "seed", "test_domain", "metric", "value", "n"]
_UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)


class TaskKey(NamedTuple):
    """What a block is about."""

    objective: str
    task: str
    protocol: str
    metric: str


@dataclass(frozen=True, eq=False)
class Block:
    """Values (S seeds, N) of each cell: N test samples (1.0 if right), or N = 1, a mean over held-out domains."""

    seeds: tuple[int, ...]
    cells: dict[Cell, Float[np.ndarray, "s n"]]
    samples: int

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio in self.cells})

    def contrast(self, weights: Weights) -> Float[np.ndarray, "s n"]:
        """Weighted sum of cells."""
        return np.stack([weight * self.cells[cell] for cell, weight in weights.items()]).sum(axis=0, dtype=np.float64)


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


@dataclass(frozen=True, eq=False)
class Result:
    """A part on a task; `reverse` says which guard clearly goes the other way, `missing` why nothing is known."""

    key: TaskKey
    part: Part
    estimate: Estimate
    seeds: int
    samples: int
    reverse: str = ""
    missing: str = ""


_ASSOCIATION = Part("C4", "OOD", "lsvr", "LP: rank correlation of LSVR and accuracy", -1, {}, {})
_MORE_OOD = Part("C5", "OOD", "accuracy", "NMTune − LP: OOD − ID", 1, {}, {})


def blocks_of(rows: pd.DataFrame, samples: pd.DataFrame) -> dict[TaskKey, Block]:
    """Accuracy from `samples`, SVE and LSVR from `rows`; only whole training sets, known methods and noise ratios."""
    samples, rows = _usable(samples, _SAMPLE_COLUMNS, "samples"), _usable(rows, _ROW_COLUMNS, "rows")
    if "train_domain" in samples:  # a sample is tested once by the heads of each source
        samples["sample"] = samples["train_domain"].astype(str) + " → " + samples["sample"].astype(str)
    blocks = {}
    for group, part in samples.assign(metric="accuracy").groupby([*_GROUP, "metric"]):
        key = TaskKey(*map(str, group))
        values, cells, seeds = _filled(key, part, "sample", part["correct"].to_numpy(np.float32))
        blocks[key] = Block(seeds, dict(zip(cells, values, strict=True)), values.shape[2])
    for group, part in rows[rows["metric"].isin(["sve", "lsvr"])].groupby([*_GROUP, "metric"]):
        key = TaskKey(*map(str, group))
        values, cells, seeds = _filled(key, part, "test_domain", part["value"].to_numpy(float))
        size = int(part.drop_duplicates("test_domain")["n"].sum())
        blocks[key] = Block(seeds, dict(zip(cells, values.mean(axis=2, keepdims=True), strict=True)), size)
    if not blocks:
        raise InvalidInputError("Expected results of pre-trained networks to judge, but there are none.")
    for key, block in blocks.items():
        if 0.0 not in block.ratios:
            raise InvalidInputError(
                f"Expected results of the clean ratio 0.0 to compare with for {' · '.join(key)}, but got the ratios "
                f"{block.ratios}: add 0.0 to the profile's ratios."
            )
    return blocks


def _usable(frame: pd.DataFrame, columns: list[str], name: str) -> pd.DataFrame:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InvalidInputError(
            f"Expected the columns {', '.join(columns)} in `{name}`; missing: {', '.join(missing)}. "
            "Use the tables of a Study."
        )
    for column in [name for name in _IDENTITY if name in frame]:
        by_objective = frame.assign(objective="any") if column == "profile" else frame
        if (by_objective.groupby("objective")[column].nunique() > 1).any():
            several = ", ".join(sorted(frame[column].astype(str).unique()))
            raise InvalidInputError(f"Expected `{name}` of one {column}, got {several}: judge one at a time.")
    kept = frame["method"].isin(METHODS) & frame["ratio"].notna()
    for column, whole in {"fraction": 1.0, "label_noise": 0.0}.items():
        if column in frame:
            kept &= frame[column] == whole
    sources = ["train_domain"] if name == "samples" and "train_domain" in frame else []
    return frame.loc[kept, [*columns, *sources]].astype({"ratio": float})


def _filled(
    key: Sequence[str], part: pd.DataFrame, item: str, values: np.ndarray
) -> tuple[np.ndarray, list[Cell], tuple[int, ...]]:
    """Values as (cells, seeds, items), each there exactly once, in an order that does not depend on the rows' own."""
    axes = (pd.MultiIndex.from_frame(part[_CELL]), part["seed"], part[item])
    codes, names = zip(*(pd.factorize(labels, sort=True) for labels in axes), strict=True)
    shape = tuple(map(len, names))
    places = np.ravel_multi_index(codes, shape)
    counts = np.bincount(places, minlength=int(np.prod(shape)))
    if (counts != 1).any():
        first = int(np.argmax(counts != 1))
        at = map(int, np.unravel_index(first, shape))
        cell, seed, which = (name[place] for name, place in zip(names, at, strict=True))
        raise InvalidInputError(
            f"Expected each method and ratio of {' · '.join(key)} once for the same seeds and {item}s, but {cell[0]} "
            f"at {ratio_label(cell[1])}, seed {seed}, {item} {which!r} occurs {counts[first]} times; "
            "judge results of one study."
        )
    filled = np.empty(len(values), values.dtype)
    filled[places] = values
    if np.isnan(filled).any():
        raise InvalidInputError(
            f"Expected numbers for {' · '.join(key)}, but {int(np.isnan(filled).sum())} are missing."
        )
    cells = [(str(method), float(ratio)) for method, ratio in names[0]]
    return filled.reshape(shape), cells, tuple(int(seed) for seed in names[1])


def parts_of(ratios: Sequence[float], protocol: str, metric: str) -> list[Part]:
    """All parts of C1 to C6 about this protocol and metric, for a task that has these ratios (0.0 among them)."""
    slight, highest = slight_ratio(ratios), max(ratios)
    pairs = (("NMTune", "LP"), ("NMTune", "MLP"), ("MLP", "LP"))
    missing = "no ratio above the slight one"
    none_above = Part("C1", "ID", "accuracy", "LP: highest − slight", -1, {}, {}, missing=missing)
    plan = [
        _difference("C1", "ID", "accuracy", "LP", slight, 0.0, 1),
        none_above if slight == highest else _difference("C1", "ID", "accuracy", "LP", highest, slight, -1),
        *(_difference("C2", "OOD", "accuracy", "LP", ratio, 0.0, -1) for ratio in sorted(ratios)[1:]),
        _trend("C2", "OOD", "accuracy", ratios, -1),
        _difference("C3", "ID", "sve", "LP", slight, 0.0, 1),
        _trend("C3", "ID", "sve", ratios, 1),
        _trend("C4", "OOD", "lsvr", ratios, 0),
        *(_between_methods(name, "accuracy", *pair, ratios, 1) for pair in pairs for name in ("ID", "OOD")),
        *(_between_methods("ID", "sve", *pair, ratios, 1) for pair in pairs[:2]),
        *(_between_methods("OOD", "lsvr", *pair, ratios, -1) for pair in pairs[:2]),
        _difference("C6", "ID", "accuracy", "NMTune", 0.0, slight, 1, null=-MARGIN),
    ]
    return [part for part in plan if (part.protocol, part.metric) == (protocol, metric)]


def slight_ratio(ratios: Sequence[float]) -> float | None:
    """The lowest noise ratio, if it is at most SLIGHT_UP_TO: one declared choice, not the best of several."""
    lowest = min((ratio for ratio in ratios if ratio > 0), default=1.0)
    return lowest if lowest <= SLIGHT_UP_TO else None


def _difference(
    claim: str, protocol: str, metric: str, method: str, ratio: float | None, baseline: float | None, direction: int,
    *, null: float = 0.0,
) -> Part:  # fmt: skip
    """One ratio minus another; None is a slight ratio that the study has not."""
    if ratio is None or baseline is None:
        names = [("slight" if one is None else "clean" if one == 0 else "highest") for one in (ratio, baseline)]
        missing = f"no noise ratio up to {ratio_label(SLIGHT_UP_TO)}"
        return Part(claim, protocol, metric, f"{method}: {' − '.join(names)}", direction, {}, {}, missing=missing)
    name = f"{method}: {ratio_label(ratio)} − {ratio_label(baseline)}"
    weights = {(method, ratio): 1.0, (method, baseline): -1.0}
    return Part(claim, protocol, metric, name, direction, weights, {}, null)


def _trend(claim: str, protocol: str, metric: str, ratios: Sequence[float], direction: int) -> Part:
    """The line fitted to the ratios' ranks, as its change from the first to the last; guarded by the single steps."""
    ordered, name = sorted(ratios), "LP: trend over ratios"
    if len(ordered) < FEWEST_FOR_TREND:
        missing = f"a trend takes {FEWEST_FOR_TREND} ratios"
        return Part(claim, protocol, metric, name, direction, {}, {}, missing=missing)
    ranks = np.arange(len(ordered)) - (len(ordered) - 1) / 2
    slopes = ranks / (ranks @ ranks) * (len(ordered) - 1)
    weights = {("LP", ratio): float(slope) for ratio, slope in zip(ordered, slopes, strict=True)}
    guards = {
        f"from {ratio_label(before)} to {ratio_label(after)}": {("LP", after): 1.0, ("LP", before): -1.0}
        for before, after in pairwise(ordered)
    }
    return Part(claim, protocol, metric, name, direction, weights, guards)


def _between_methods(protocol: str, metric: str, better: str, worse: str, ratios: Sequence[float], sign: int) -> Part:
    """The mean over ratios of one method minus another; guarded by the single ratios."""
    guards = {f"at {ratio_label(ratio)}": {(better, ratio): 1.0, (worse, ratio): -1.0} for ratio in sorted(ratios)}
    weights = {cell: weight / len(guards) for guard in guards.values() for cell, weight in guard.items()}
    return Part("C5", protocol, metric, f"{better} − {worse}", sign, weights, guards)


def results_of(blocks: dict[TaskKey, Block]) -> list[Result]:
    """All parts that the blocks, of one objective, have data for, in the order of tasks."""
    results = [_judged(key, block, part) for key, block in blocks.items()
               for part in parts_of(block.ratios, key.protocol, key.metric)]  # fmt: skip
    return [*results, *_associations(blocks), *_more_out_of_domain(blocks)]


def _judged(key: TaskKey, block: Block, part: Part) -> Result:
    absent = sorted({method for method, ratio in part.weights if (method, ratio) not in block.cells})
    if part.missing or absent:
        missing = part.missing or f"{', '.join(absent)} was not evaluated at every ratio"
        return Result(key, part, _UNKNOWN, len(block.seeds), block.samples, missing=missing)
    estimate = paired_estimate([block.contrast(part.weights)], [1.0], null=part.null)
    sign = part.direction or np.sign(estimate.effect)
    reverse = ""
    for name, weights in part.guards.items():
        guard = paired_estimate([block.contrast(weights)], [1.0])
        if not reverse and (guard.high < 0 if sign > 0 else guard.low > 0):
            reverse = f"{name} it is {guard.effect:+.4f} [{guard.low:+.4f}, {guard.high:+.4f}]"
    return Result(key, part, estimate, len(block.seeds), block.samples, reverse)


def _associations(blocks: dict[TaskKey, Block]) -> list[Result]:
    """Does, within seeds, a higher LSVR go with lower accuracy over the ratios?"""
    results = []
    for key, lsvr in blocks.items():
        accuracy = blocks.get(key._replace(metric="accuracy"))
        if (key.protocol, key.metric) != ("OOD", "lsvr") or accuracy is None:
            continue
        cells = [("LP", ratio) for ratio in lsvr.ratios]
        missing = ""
        if not all(cell in block.cells for cell in cells for block in (lsvr, accuracy)):
            missing = "LP was not evaluated at every ratio"
        elif not 3 <= len(cells) <= MOST_RANKED:
            missing = f"a rank correlation takes 3 to {MOST_RANKED} ratios"
        elif lsvr.seeds != accuracy.seeds:
            missing = "rows and samples have different seeds"
        tables = (np.stack([block.cells[cell].mean(axis=1, dtype=float) for cell in cells], axis=1)
                  for block in (lsvr, accuracy))  # fmt: skip
        estimate = _UNKNOWN if missing else rank_association(*tables)
        results.append(Result(key, _ASSOCIATION, estimate, len(lsvr.seeds), accuracy.samples, missing=missing))
    return results


def _more_out_of_domain(blocks: dict[TaskKey, Block]) -> list[Result]:
    """Is what NMTune gains over LP larger out of domain? Mean over OOD tasks minus mean over ID tasks.

    A task that is in both has its test samples in both; taken as unrelated, they only widen the interval.
    """
    gains: dict[str, list[np.ndarray]] = {"ID": [], "OOD": []}
    seeds, samples = set(), 0
    for key, block in blocks.items():
        part = next((p for p in parts_of(block.ratios, key.protocol, key.metric) if p.contrast == "NMTune − LP"), None)
        if part is None or key.metric != "accuracy" or not all(cell in block.cells for cell in part.weights):
            continue
        gains[key.protocol].append(block.contrast(part.weights))
        seeds.add(block.seeds)
        samples += block.samples
    if not (gains["ID"] and gains["OOD"]):
        return []
    key = TaskKey(next(iter(blocks)).objective, ALL_TASKS, "OOD", "accuracy")
    missing = "" if len(seeds) == 1 else "the tasks have different seeds"
    weights = [sign / len(gains[name]) for name, sign in (("ID", -1), ("OOD", 1)) for _ in gains[name]]
    estimate = _UNKNOWN if missing else paired_estimate([*gains["ID"], *gains["OOD"]], weights)
    return [Result(key, _MORE_OOD, estimate, len(next(iter(seeds))), samples, missing=missing)]
