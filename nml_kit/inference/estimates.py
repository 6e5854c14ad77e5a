"""Each part of each claim estimated on each task of one objective, before any adjustment for their number."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nml_kit.inference.cells import Block, TaskKey
from nml_kit.inference.parts import Part, Weights, parts_of
from nml_kit.inference.statistics import MOST_RANKED, Estimate, paired_estimate, rank_association

_UNKNOWN = Estimate(math.nan, math.nan, math.nan, math.nan)
_ASSOCIATION = Part("C4", "OOD", "lsvr", "LP: rank correlation of LSVR and accuracy", -1, {}, {})
_MORE_OOD = Part("C5", "OOD", "accuracy", "NMTune − LP: OOD − ID", 1, {}, {})
ALL_TASKS = "all tasks"


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
    estimate = paired_estimate([_contrast(block, part.weights)], [1.0], null=part.null)
    sign = part.direction or np.sign(estimate.effect)
    reverse = ""
    for name, weights in part.guards.items():
        guard = paired_estimate([_contrast(block, weights)], [1.0])
        if not reverse and (guard.high < 0 if sign > 0 else guard.low > 0):
            reverse = f"{name} it is {guard.effect:+.4f} [{guard.low:+.4f}, {guard.high:+.4f}]"
    return Result(key, part, estimate, len(block.seeds), block.samples, reverse)


def _contrast(block: Block, weights: Weights) -> NDArray[np.float64]:
    """Weighted sum of cells: (S, N)."""
    return np.sum([weight * block.cells[cell] for cell, weight in weights.items()], axis=0, dtype=np.float64)


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
    gains: dict[str, list[NDArray[np.float64]]] = {"ID": [], "OOD": []}
    seeds, samples = set(), 0
    for key, block in blocks.items():
        part = next((p for p in parts_of(block.ratios, key.protocol, key.metric) if p.contrast == "NMTune − LP"), None)
        if part is None or key.metric != "accuracy" or not all(cell in block.cells for cell in part.weights):
            continue
        gains[key.protocol].append(_contrast(block, part.weights))
        seeds.add(block.seeds)
        samples += block.samples
    if not (gains["ID"] and gains["OOD"]):
        return []
    objective = next(iter(blocks)).objective
    key = TaskKey(objective, ALL_TASKS, "OOD", "accuracy")
    missing = "" if len(seeds) == 1 else "the tasks have different seeds"
    weights = [sign / len(gains[name]) for name, sign in (("ID", -1), ("OOD", 1)) for _ in gains[name]]
    estimate = _UNKNOWN if missing else paired_estimate([*gains["ID"], *gains["OOD"]], weights)
    return [Result(key, _MORE_OOD, estimate, len(next(iter(seeds))), samples, missing=missing)]
