"""Result rows and sample scores as arrays: for each task, the cells (method, ratio) × seeds × test samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError
from nml_kit.inference.names import ratio_label

METHODS = ("LP", "MLP", "NMTune")
Cell = tuple[str, float]
_CELL = ["method", "ratio"]
_GROUP = ["objective", "task", "protocol"]
_SAMPLE_COLUMNS = [*_GROUP, *_CELL, "seed", "sample", "correct"]
_ROW_COLUMNS = [*_GROUP, *_CELL, "seed", "test_domain", "metric", "value", "n"]


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
    cells: dict[Cell, NDArray[np.float32] | NDArray[np.float64]]
    samples: int

    @property
    def ratios(self) -> list[float]:
        return sorted({ratio for _, ratio in self.cells})


def blocks_of(rows: pd.DataFrame, samples: pd.DataFrame) -> dict[TaskKey, Block]:
    """Accuracy from `samples`, SVE and LSVR from `rows`; only whole training sets, known methods and noise ratios.

    Raises InvalidInputError if a column or the clean ratio is missing, seeds or samples are unpaired, or rows repeated.
    """
    samples = _usable(samples, _SAMPLE_COLUMNS, "samples")
    rows = _usable(rows, _ROW_COLUMNS, "rows")
    rows = rows[rows["metric"].isin(["sve", "lsvr"])]
    blocks = {}
    for group, part in samples.assign(metric="accuracy").groupby([*_GROUP, "metric"]):
        key = TaskKey(*map(str, group))
        blocks[key] = _accuracy(key, part)
    for group, part in rows.groupby([*_GROUP, "metric"]):
        key = TaskKey(*map(str, group))
        blocks[key] = _spectral(key, part)
    if not blocks:
        raise InvalidInputError("Expected results of pre-trained networks to judge, but there are none.")
    for key, block in blocks.items():
        if 0.0 not in block.ratios:
            raise InvalidInputError(
                f"Expected results of the clean ratio 0.0 to compare with for {_named(key)}, but got the ratios "
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
    profiles = sorted(frame["profile"].astype(str).unique()) if "profile" in frame else []
    if len(profiles) > 1:
        raise InvalidInputError(f"Expected `{name}` of one profile, got {', '.join(profiles)}: judge one at a time.")
    kept = frame["method"].isin(METHODS) & frame["ratio"].notna()
    for column, whole in {"fraction": 1.0, "label_noise": 0.0}.items():
        if column in frame:
            kept &= frame[column] == whole
    kept_frame = frame.loc[kept, columns]
    return kept_frame.astype({"ratio": float})


def _accuracy(key: Sequence[str], part: pd.DataFrame) -> Block:
    values, cells, seeds = _filled(key, part, "sample", part["correct"].to_numpy(np.float32))
    return Block(seeds, dict(zip(cells, values, strict=True)), values.shape[2])


def _spectral(key: Sequence[str], part: pd.DataFrame) -> Block:
    values, cells, seeds = _filled(key, part, "test_domain", part["value"].to_numpy(float))
    means = values.mean(axis=2, keepdims=True)
    size = int(part.drop_duplicates("test_domain")["n"].sum())
    return Block(seeds, dict(zip(cells, means, strict=True)), size)


def _filled(
    key: Sequence[str], part: pd.DataFrame, item: str, values: NDArray[np.floating]
) -> tuple[NDArray[np.floating], list[Cell], tuple[int, ...]]:
    """Values as (cells, seeds, items), each there exactly once, in an order that does not depend on the rows' own."""
    codes, names = [], []
    for labels in (pd.MultiIndex.from_frame(part[_CELL]), part["seed"], part[item]):
        code, name = pd.factorize(labels, sort=True)
        codes.append(code)
        names.append(name)
    shape = tuple(map(len, names))
    places = np.ravel_multi_index(codes, shape)
    counts = np.bincount(places, minlength=int(np.prod(shape)))
    if (counts != 1).any():
        first = int(np.argmax(counts != 1))
        cell, seed, which = (
            name[place] for name, place in zip(names, map(int, np.unravel_index(first, shape)), strict=True)
        )
        raise InvalidInputError(
            f"Expected each method and ratio of {_named(key)} once for the same seeds and {item}s, but {cell[0]} "
            f"at {ratio_label(cell[1])}, seed {seed}, {item} {which!r} occurs {counts[first]} times; "
            "judge results of one study."
        )
    filled = np.empty(len(values), values.dtype)
    filled[places] = values
    if np.isnan(filled).any():
        raise InvalidInputError(f"Expected numbers for {_named(key)}, but {int(np.isnan(filled).sum())} are missing.")
    cells = [(str(method), float(ratio)) for method, ratio in names[0]]
    return filled.reshape(shape), cells, tuple(int(seed) for seed in names[1])


def _named(key: Sequence[str]) -> str:
    return " · ".join(map(str, key))
