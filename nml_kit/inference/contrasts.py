"""The contrasts that claims are about: weights of the cells (method, ratio), stated before any result is seen.

For each task, results become cells (method, ratio) × seeds × test samples; a part of a claim is a weighted sum of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
Cell = tuple[str, float]
Weights = dict[Cell, float]
_CELL = ["method", "ratio"]
_GROUP = ["objective", "task", "protocol"]
_COLUMNS = {
    "samples": [*_GROUP, *_CELL, "seed", "sample", "correct"],
    "rows": [*_GROUP, *_CELL, "seed", "test_domain", "metric", "value", "n"],
}


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
    """One estimand: the weighted sum of cells.

    `direction` is the claimed sign of estimand − `null`, 0 for either. `guards`, by name, are what must not clearly go
    the other way for the claim to hold: the single steps of a trend, the single ratios of a mean over ratios.
    `missing` says why nothing is known.
    """

    claim: str
    contrast: str
    direction: int
    weights: Weights = field(default_factory=dict)
    guards: dict[str, Weights] = field(default_factory=dict)
    null: float = 0.0
    missing: str = ""


class Result(NamedTuple):
    """A part on a task; `reverse` says which guard clearly goes the other way."""

    key: TaskKey
    part: Part
    estimate: Estimate
    seeds: int
    samples: int
    reverse: str = ""


_ASSOCIATION = Part("C4", "LP: rank correlation of LSVR and accuracy", -1)
_MORE_OOD = Part("C5", "NMTune − LP: OOD − ID", 1)


def blocks_of(rows: pd.DataFrame, samples: pd.DataFrame) -> dict[TaskKey, Block]:
    """Accuracy from `samples`, SVE and LSVR from `rows`; only whole training sets, known methods and noise ratios."""
    samples, rows = _usable(samples, "samples").assign(metric="accuracy"), _usable(rows, "rows")
    for table, tested in ((samples, "sample"), (rows, "test_domain")):
        if "train_domain" in table:  # each is tested once by the heads of each source
            table[tested] = table["train_domain"].astype(str) + " → " + table[tested].astype(str)
    samples["correct"] = samples["correct"].astype(np.float32)
    spectral, blocks = rows[rows["metric"].isin(["sve", "lsvr"])], {}
    for table, item, value in ((samples, "sample", "correct"), (spectral, "test_domain", "value")):
        for group, part in table.groupby([*_GROUP, "metric"]):
            key = TaskKey(*map(str, group))
            blocks[key] = block = _block(" · ".join(key), part, item, value)
            if 0.0 not in block.ratios:
                raise InvalidInputError(
                    f"Expected results of the clean ratio 0.0 to compare with for {' · '.join(key)}, but got the "
                    f"ratios {block.ratios}: add 0.0 to the profile's ratios."
                )
    if not blocks:
        raise InvalidInputError("Expected results of pre-trained networks to judge, but there are none.")
    return blocks


def _usable(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    columns = _COLUMNS[name]
    if missing := [column for column in columns if column not in frame]:
        raise InvalidInputError(
            f"Expected the columns {', '.join(columns)} in `{name}`; missing: {', '.join(missing)}. "
            "Use the tables of a Study."
        )
    for column in frame.columns.intersection(["profile", "recipe", "noise"]):
        groups = np.zeros(len(frame)) if column == "profile" else frame["objective"]
        if (frame.groupby(groups)[column].nunique() > 1).any():
            several = ", ".join(sorted(frame[column].astype(str).unique()))
            raise InvalidInputError(f"Expected `{name}` of one {column}, got {several}: judge one at a time.")
    kept = frame["method"].isin(METHODS) & frame["ratio"].notna()
    for column, value in {"fraction": 1.0, "label_noise": 0.0}.items():
        kept &= frame.get(column, value) == value
    return frame[kept].filter([*columns, "train_domain"]).astype({"ratio": float})


def _block(about: str, part: pd.DataFrame, item: str, value: str) -> Block:
    """Values of each cell by seed and item, each there exactly once; the order of the rows does not matter."""
    axes = (pd.MultiIndex.from_frame(part[_CELL]), part["seed"], part[item])
    codes, names = zip(*(pd.factorize(labels, sort=True) for labels in axes), strict=True)
    counts = np.zeros(tuple(map(len, names)), dtype=int)
    np.add.at(counts, codes, 1)
    if (counts != 1).any():
        at = tuple(np.argwhere(counts != 1)[0])
        cell, seed, which = (name[place] for name, place in zip(names, at, strict=True))
        raise InvalidInputError(
            f"Expected each method and ratio of {about} once for the same seeds and {item}s, but {cell[0]} at "
            f"{ratio_label(cell[1])}, seed {seed}, {item} {which!r} occurs {counts[at]} times; "
            "judge results of one study."
        )
    if part[value].isna().any():
        raise InvalidInputError(f"Expected numbers for {about}, but {part[value].isna().sum()} are missing.")
    numbers = part[value].to_numpy()
    filled = np.empty(counts.shape, numbers.dtype)
    filled[codes] = numbers
    samples = filled.shape[2]
    if item == "test_domain":
        filled, samples = filled.mean(axis=2, keepdims=True), int(part.drop_duplicates(item)["n"].sum())
    cells = [(str(method), float(ratio)) for method, ratio in names[0]]
    return Block(tuple(map(int, names[1])), dict(zip(cells, filled, strict=True)), samples)


def parts_of(ratios: Sequence[float], protocol: str, metric: str) -> list[Part]:
    """All parts of C1 to C6 about this protocol and metric, for a task that has these ratios (0.0 among them)."""
    roles = {"clean": 0.0, "slight": slight_ratio(ratios), "highest": max(ratios)}
    of_methods = [_between_methods(*pair, ratios, -1 if metric == "lsvr" else 1)
                  for pair in (("NMTune", "LP"), ("NMTune", "MLP"), ("MLP", "LP"))]  # fmt: skip
    if (protocol, metric) == ("ID", "accuracy"):
        slight = _difference("C1", "LP", "slight", "clean", roles, 1)
        more = _difference("C1", "LP", "highest", "slight", roles, -1)
        not_inferior = replace(_difference("C6", "NMTune", "clean", "slight", roles, 1), null=-MARGIN)
        return [slight, more, *of_methods, not_inferior]
    if (protocol, metric) == ("OOD", "accuracy"):
        noisy = [roles | {"noisy": ratio} for ratio in sorted(ratios)[1:]]
        differences = [_difference("C2", "LP", "noisy", "clean", its_roles, -1) for its_roles in noisy]
        return [*differences, _trend("C2", ratios, -1), *of_methods]
    if (protocol, metric) == ("ID", "sve"):
        return [_difference("C3", "LP", "slight", "clean", roles, 1), _trend("C3", ratios, 1), *of_methods[:2]]
    return [_trend("C4", ratios, 0), *of_methods[:2]] if (protocol, metric) == ("OOD", "lsvr") else []


def slight_ratio(ratios: Sequence[float]) -> float:
    """The lowest noise ratio, if it is at most SLIGHT_UP_TO, else NaN: one declared choice, not the best of several."""
    lowest = min((ratio for ratio in ratios if ratio > 0), default=1.0)
    return lowest if lowest <= SLIGHT_UP_TO else math.nan


def _difference(claim: str, method: str, above: str, below: str, roles: dict[str, float], sign: int) -> Part:
    """One ratio minus another, by their roles."""
    ratios, names, missing = (roles[above], roles[below]), (above, below), ""
    if math.isnan(sum(ratios)):
        missing = f"no noise ratio up to {ratio_label(SLIGHT_UP_TO)}"
    elif ratios[0] == ratios[1]:
        missing = "no ratio above the slight one"
    else:
        names = (ratio_label(ratios[0]), ratio_label(ratios[1]))
    weights = {} if missing else {(method, ratios[0]): 1.0, (method, ratios[1]): -1.0}
    return Part(claim, f"{method}: {' − '.join(names)}", sign, weights, missing=missing)


def _trend(claim: str, ratios: Sequence[float], direction: int) -> Part:
    """The line fitted to the ratios' ranks, as its change from the first to the last; guarded by the single steps."""
    ordered, part = sorted(ratios), Part(claim, "LP: trend over ratios", direction)
    if len(ordered) < FEWEST_FOR_TREND:
        return replace(part, missing=f"a trend takes {FEWEST_FOR_TREND} ratios")
    ranks = np.arange(len(ordered)) - (len(ordered) - 1) / 2
    slopes = ranks / (ranks @ ranks) * (len(ordered) - 1)
    weights = {("LP", ratio): float(slope) for ratio, slope in zip(ordered, slopes, strict=True)}
    guards = {
        f"from {ratio_label(before)} to {ratio_label(after)}": {("LP", after): 1.0, ("LP", before): -1.0}
        for before, after in pairwise(ordered)
    }
    return replace(part, weights=weights, guards=guards)


def _between_methods(better: str, worse: str, ratios: Sequence[float], sign: int) -> Part:
    """The mean over ratios of one method minus another; guarded by the single ratios."""
    guards = {f"at {ratio_label(ratio)}": {(better, ratio): 1.0, (worse, ratio): -1.0} for ratio in sorted(ratios)}
    weights = {cell: weight / len(guards) for guard in guards.values() for cell, weight in guard.items()}
    return Part("C5", f"{better} − {worse}", sign, weights, guards)


def results_of(blocks: dict[TaskKey, Block]) -> list[Result]:
    """All parts that the blocks, of one objective, have data for, in the order of tasks."""
    results = [
        _estimated(key, block, part)
        for key, block in blocks.items()
        for part in parts_of(block.ratios, key.protocol, key.metric)
    ]
    return [*results, *_associations(blocks), *_more_out_of_domain(blocks)]


def _estimated(key: TaskKey, block: Block, part: Part) -> Result:
    absent = sorted({method for method, ratio in part.weights if (method, ratio) not in block.cells})
    if absent:
        part = replace(part, missing=f"{', '.join(absent)} was not evaluated at every ratio")
    if part.missing:
        return Result(key, part, Estimate(), len(block.seeds), block.samples)
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
        cells, estimate, missing = [("LP", ratio) for ratio in lsvr.ratios], Estimate(), ""
        if not all(cell in block.cells for cell in cells for block in (lsvr, accuracy)):
            missing = "LP was not evaluated at every ratio"
        elif not 3 <= len(cells) <= MOST_RANKED:
            missing = f"a rank correlation takes 3 to {MOST_RANKED} ratios"
        elif lsvr.seeds != accuracy.seeds:
            missing = "rows and samples have different seeds"
        else:
            means = ([block.cells[cell].mean(axis=1, dtype=float) for cell in cells] for block in (lsvr, accuracy))
            estimate = rank_association(*(np.stack(table, axis=1) for table in means))
        part = replace(_ASSOCIATION, missing=missing)
        results.append(Result(key, part, estimate, len(lsvr.seeds), accuracy.samples))
    return results


def _more_out_of_domain(blocks: dict[TaskKey, Block]) -> list[Result]:
    """Is what NMTune gains over LP larger out of domain? Mean over OOD tasks minus mean over ID tasks.

    A task that is in both has its test samples in both; taken as unrelated, they only widen the interval.
    """
    gains: dict[str, list[np.ndarray]] = {"ID": [], "OOD": []}
    seeds, samples = set(), 0
    for key, block in blocks.items():
        gain = _between_methods("NMTune", "LP", block.ratios, 1).weights
        if key.metric == "accuracy" and key.protocol in gains and gain.keys() <= block.cells.keys():
            gains[key.protocol].append(block.contrast(gain))
            seeds.add(block.seeds)
            samples += block.samples
    if not (gains["ID"] and gains["OOD"]):
        return []
    key = TaskKey(next(iter(blocks)).objective, "all tasks", "OOD", "accuracy")
    part = replace(_MORE_OOD, missing="" if len(seeds) == 1 else "the tasks have different seeds")
    weights = [sign / len(gains[name]) for name, sign in (("ID", -1), ("OOD", 1)) for _ in gains[name]]
    estimate = Estimate() if part.missing else paired_estimate([*gains["ID"], *gains["OOD"]], weights)
    return [Result(key, part, estimate, len(next(iter(seeds))), samples)]
