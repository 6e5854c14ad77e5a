"""How sure one is of an accuracy or a difference: bootstrap intervals, paired over seeds and test samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap

from nml_kit.errors import InvalidInputError
from nml_kit.inference.names import ratio_label

# Equal in both of a pair, but for the one that is compared.
_PAIRS = ("backbone", "task", "train_domain", "protocol", "method", "ratio", "objective", "fraction", "label_noise",
          "seed", "sample")  # fmt: skip


def bootstrap_mean(
    blocks: Sequence[NDArray[np.float64]], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over blocks of each block's mean, with a 95 % percentile bootstrap interval: (mean, low, high).

    A block is a (seeds, samples) array, one per task. Seeds are resampled jointly for all blocks, samples within
    each block, independently of each other, so the interval covers both sources of chance; with a single seed it
    covers samples only, with a single sample seeds only. With few seeds such intervals tend to be too narrow.
    Raises InvalidInputError if the blocks differ in seeds, are empty, or hold NaN.

    >>> bootstrap_mean([np.ones((3, 10))])
    (1.0, 1.0, 1.0)
    """
    seeds = {len(block) for block in blocks}
    if len(seeds) != 1 or any(block.size == 0 or np.isnan(block).any() for block in blocks):
        raise InvalidInputError(
            "Expected blocks (seeds, samples) with the same seeds and no missing value, but got shapes "
            f"{[block.shape for block in blocks]}; compare runs on the same seeds and samples."
        )
    mean = float(np.mean([block.mean() for block in blocks]))
    spread = np.concatenate([block.ravel() for block in blocks])
    if np.ptp(spread) == 0:
        return mean, mean, mean

    def statistic(seed_rows: NDArray[np.intp], *columns: NDArray[np.intp], axis: int) -> NDArray[np.float64]:
        picked = [
            np.take_along_axis(_rows_mean(block, seed_rows), chosen, axis=-1).mean(axis=axis)
            for block, chosen in zip(blocks, columns, strict=True)
        ]
        return np.mean(picked, axis=0)

    # scipy draws from two observations at least; of one twice it can only draw that one
    data = [np.arange(max(count, 2)) % count for count in (seeds.pop(), *(block.shape[1] for block in blocks))]
    result = bootstrap(data, statistic, n_resamples=resamples, batch=200, method="percentile", vectorized=True,
                       rng=np.random.default_rng(seed))  # fmt: skip
    return mean, float(result.confidence_interval.low), float(result.confidence_interval.high)


def _rows_mean(block: NDArray[np.float64], seed_rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean over the resampled seeds: (…, seeds) positions → (…, samples), as one product with their counts."""
    counts = (seed_rows[..., None] == np.arange(len(block))).mean(axis=-2)
    return counts @ block


def accuracy_intervals(
    samples: pd.DataFrame, by: Sequence[str] = ("task", "protocol", "method", "ratio"), *, seed: int = 0
) -> pd.DataFrame:
    """Accuracy (fraction) with its 95 % interval for each group of `by`; several tasks in a group weigh equally.

    `samples` has the columns of `sample_scores` with `ratio` and `seed`. Columns: by…, mean, low, high, seeds, n.
    """
    return _intervals(samples, "correct", list(by), seed)


def paired_differences(
    samples: pd.DataFrame, of: str, baseline: Any, by: Sequence[str], *, seed: int = 0
) -> pd.DataFrame:
    """Accuracy of each value of column `of` minus that of `baseline`, on the same seeds and samples, with intervals.

    `of` is "method" (baseline "LP"), "ratio" (baseline 0.0), "backbone", "fraction" or "label_noise"; `by` are the
    groups. Columns: by…, of, mean, low, high.
    Raises InvalidInputError if the baseline does not occur, or its seeds and samples are not those of the others.
    """
    differing = {of, "backbone"} if of == "ratio" else {of}
    pairs = [column for column in _PAIRS if column in samples and column not in differing]
    reference = samples.loc[samples[of] == baseline].set_index(pairs)["correct"].astype(float)
    if reference.empty:
        raise InvalidInputError(f"Expected rows with {of} = {baseline!r} to compare with, but there are none.")
    others = samples.loc[(samples[of] != baseline) & samples[of].notna()]
    matched = reference.reindex(others.set_index(pairs).index).to_numpy()
    if np.isnan(matched).any():
        raise InvalidInputError(
            f"Expected the seeds and samples of {of} = {baseline!r} to be those of the others, but "
            f"{int(np.isnan(matched).sum())} of {len(matched)} rows have no partner; compare runs of one study."
        )
    difference = others["correct"].to_numpy(float) - matched
    return _intervals(others.assign(difference=difference), "difference", [*by, of], seed)


def _intervals(samples: pd.DataFrame, column: str, by: list[str], seed: int) -> pd.DataFrame:
    rows = []
    for group, part in samples.groupby(by, dropna=False, sort=True):
        blocks = [
            task.pivot_table(index="seed", columns="sample", values=column, aggfunc="mean").to_numpy(float)
            for _, task in part.groupby(["task", "protocol"])
        ]
        mean, low, high = bootstrap_mean(blocks, seed=seed)
        size = sum(block.shape[1] for block in blocks)
        rows.append((*group, mean, low, high, len(blocks[0]), size))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "seeds", "n"])


def change_in_words(mean: float, low: float, high: float) -> str:
    """A difference with its 95 % interval as a phrase that claims no more than the interval does.

    >>> change_in_words(-0.031, -0.042, -0.020)
    'falls by 0.031 [0.020, 0.042]'
    >>> change_in_words(0.004, -0.003, 0.011)
    'shows no clear change (+0.004 [-0.003, +0.011])'
    """
    if low > 0:
        return f"rises by {mean:.3f} [{low:.3f}, {high:.3f}]"
    if high < 0:
        return f"falls by {-mean:.3f} [{-high:.3f}, {-low:.3f}]"
    return f"shows no clear change ({mean:+.3f} [{low:+.3f}, {high:+.3f}])"


def changes_in_words(changes: pd.DataFrame, each: str) -> str:
    r"""A Markdown list of the rows of `paired_differences`: `each`, filled from a row's columns, and the change.

    Ratios and other shares read as percents. The list starts with the empty line that must come before it.

    >>> changes = pd.DataFrame({"protocol": ["OOD"], "ratio": 0.3, "mean": -0.031, "low": -0.042, "high": -0.020})
    >>> changes_in_words(changes, "{protocol} at {ratio}: accuracy")
    '\n\n- OOD at 30 %: accuracy falls by 0.031 [0.020, 0.042]'
    """
    bullets = []
    for row in changes.to_dict("records"):
        labels = {name: ratio_label(row[name]) for name in ("ratio", "label_noise", "fraction") if name in row}
        bullets.append(f"- {each.format(**{**row, **labels})} {change_in_words(row['mean'], row['low'], row['high'])}")
    return "\n\n" + "\n".join(bullets)
