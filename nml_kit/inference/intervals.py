"""How sure one is of an accuracy, a difference or a best ratio: the bootstrap, over seeds and test samples.

These tables are for one seed as well, where `paired_estimate`, which decides claims, has nothing to say; with few seeds
they are too narrow (0.84 covered with two seeds, 0.92 with five), so no claim rests on them.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from nml_kit.errors import InvalidInputError
from nml_kit.inference.names import ratio_label, require_columns

_BATCH = 200  # resamples at a time: memory stays at that many rows of sample counts
# Equal in both of a pair, but for the one that is compared.
_PAIRS = ("backbone", "task", "train_domain", "protocol", "method", "ratio", "objective", "fraction", "label_noise",
          "seed", "sample")  # fmt: skip


def bootstrap_mean(
    blocks: Sequence[Float[np.ndarray, "seeds samples"]], *, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean over blocks of each block's mean, with a 95 % percentile bootstrap interval: (mean, low, high).

    A block has one row per seed, for one task. Seeds are resampled jointly for all blocks, samples within each block:
    the interval covers both sources of chance; with a single seed samples only, with a single sample seeds only.
    Raises InvalidInputError if the blocks differ in seeds, are empty, or hold NaN.

    >>> bootstrap_mean([np.ones((3, 10))])
    (1.0, 1.0, 1.0)
    """
    if len(set(map(len, blocks))) != 1 or any(block.size == 0 or np.isnan(block).any() for block in blocks):
        raise InvalidInputError(
            "Expected blocks (seeds, samples) with the same seeds and no missing value, but got shapes "
            f"{[block.shape for block in blocks]}; compare runs on the same seeds and samples."
        )
    mean = float(np.mean([block.mean() for block in blocks]))
    if np.ptp(np.concatenate([block.ravel() for block in blocks])) == 0:
        return mean, mean, mean
    drawn = _resampled_sums([block[None] for block in blocks], resamples)
    means = [np.mean([total[:, 0] / block.size for total, block in zip(sums, blocks, strict=True)], axis=0)
             for sums in drawn]  # fmt: skip
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return mean, float(low), float(high)


def _resampled_sums(blocks: Sequence[np.ndarray], resamples: int) -> Iterator[list[np.ndarray]]:
    """Sums (B, rows) of each block (rows, seeds, samples) over resampled seeds and samples, B resamples at a time.

    Seeds are drawn jointly for all blocks, samples for each block. A resample is how often each is drawn: sums are
    products, those of 0s and 1s whole numbers, and ties exact. The draws are the same for every table.
    """
    generator = np.random.default_rng(0)

    def times_drawn(count: int, size: int) -> np.ndarray:
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)

    for start in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - start)
        seeds = times_drawn(blocks[0].shape[1], size)
        yield [np.einsum("rsb,bs->br", block @ times_drawn(block.shape[2], size).T, seeds) for block in blocks]


def accuracy_intervals(
    samples: pd.DataFrame, by: Sequence[str] = ("task", "protocol", "method", "ratio"), *, column: str = "correct"
) -> pd.DataFrame:
    """Accuracy (fraction) with its 95 % interval for each group of `by`; several tasks in a group weigh equally.

    `samples` has the columns of `Study.samples`; another column may be averaged instead of `correct`. Columns: by…,
    mean, low, high, seeds, n.
    """
    rows = []
    for group, part in samples.groupby(list(by), dropna=False):
        blocks = [
            task.pivot_table(index="seed", columns="sample", values=column).to_numpy(float)
            for _, task in part.groupby(["task", "protocol"])
        ]
        size = sum(block.shape[1] for block in blocks)
        rows.append((*group, *bootstrap_mean(blocks), len(blocks[0]), size))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "seeds", "n"])


def paired_differences(samples: pd.DataFrame, of: str, baseline: Any, by: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each value of column `of` minus that of `baseline`, on the same seeds and samples, with intervals.

    `of` is "method" (baseline "LP"), "ratio" (baseline 0.0), "backbone", "fraction" or "label_noise"; `by` are the
    groups. Columns: by…, of, mean, low, high, seeds, n.
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
    return accuracy_intervals(others.assign(difference=difference), [*by, of], column="difference")


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
        shares = {name: ratio_label(row[name]) for name in ("ratio", "label_noise", "fraction") if name in row}
        text = each.format_map({str(name): value for name, value in (row | shares).items()})
        bullets.append(f"- {text} {change_in_words(row['mean'], row['low'], row['high'])}")
    return "\n\n" + "\n".join(bullets)


def probabilities_of_best(
    correct: Float[np.ndarray, "ratios seeds samples"], *, resamples: int = 2000
) -> Float[np.ndarray, " ratios"]:
    """Share of bootstrap resamples in which each ratio has the highest mean, summing to 1.

    `correct` is 0 or 1, of ratios on the same seeds and test samples. Seeds and samples are resampled jointly for all
    ratios; ratios that tie share the resample equally. With one seed the result knows the chance of samples only.

    >>> probabilities_of_best(np.stack([np.zeros((2, 9)), np.ones((2, 9)), np.ones((2, 9))])).tolist()
    [0.0, 0.5, 0.5]
    """
    wins = np.zeros(len(correct))
    for [totals] in _resampled_sums([correct], resamples):
        best = totals == totals.max(axis=1, keepdims=True)
        wins += (best / best.sum(axis=1, keepdims=True)).sum(axis=0)
    return wins / resamples


def best_ratio_table(samples: pd.DataFrame, by: Sequence[str] = ("task", "protocol")) -> pd.DataFrame:
    """How probable it is that each ratio is the best, for each group of `by`: by…, ratio, accuracy, probability.

    `samples` has the columns of `Study.samples` of one method; the random baseline (ratio NaN) is left out. Accuracy
    and probability (see `probabilities_of_best`) are fractions. Raises InvalidInputError if the ratios of a group were
    not tested on the same seeds and samples.
    """
    rows = []
    for group, ratios, block in _blocks(samples, by):
        numbers = zip(ratios, block.mean(axis=(1, 2)), probabilities_of_best(block), strict=True)
        rows += [(*group, *row) for row in numbers]
    return pd.DataFrame(rows, columns=[*by, "ratio", "accuracy", "probability"])


def best_ratios(table: pd.DataFrame, by: Sequence[str] = ("task", "protocol"), *, level: float = 0.95) -> pd.DataFrame:
    """What `best_ratio_table` says for each group: best, probability, candidates, established, includes_clean.

    `best` is the most probable ratio, `candidates` the fewest that together hold `level`, ascending, `established`
    whether that is one, `includes_clean` whether ratio 0 is among them.

    >>> table = pd.DataFrame({"task": "t", "ratio": [0.0, 0.1, 0.3], "probability": [0.3, 0.66, 0.04]})
    >>> best_ratios(table, ["task"])[["best", "candidates", "established"]].values.tolist()
    [[0.1, (0.0, 0.1), False]]
    """
    rows = []
    for group, part in table.groupby(list(by)):
        part = part.sort_values("probability", ascending=False, kind="stable")
        before = part["probability"].cumsum() - part["probability"]
        chosen = tuple(sorted(part.loc[before < level - 1e-12, "ratio"]))
        rows.append((*group, *part[["ratio", "probability"]].iloc[0], chosen, len(chosen) == 1, 0.0 in chosen))
    return pd.DataFrame(rows, columns=[*by, "best", "probability", "candidates", "established", "includes_clean"])


def chance_of_established(
    samples: pd.DataFrame, by: Sequence[str] = ("task", "protocol"), *, level: float = 0.95, shuffles: int = 20
) -> float:
    """How often a group of `by` would get an established best ratio if the ratio did not matter, a fraction.

    Networks of one seed are then exchangeable: `shuffles` times the ratios of each seed are permuted, and the share of
    groups is counted in which some ratio reaches `level`. The bootstrap is no test; this says what it is worth.
    """
    generator, reached = np.random.default_rng(0), []
    for _, _, block in _blocks(samples, by):
        for _ in range(shuffles):
            shuffled = np.stack([seed[generator.permutation(len(block))] for seed in block.swapaxes(0, 1)], axis=1)
            reached.append(probabilities_of_best(shuffled, resamples=500).max() >= level)
    return float(np.mean(reached))


def _blocks(samples: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Hashable, ...], list[float], np.ndarray]]:
    """Each group of `by`, its ratios ascending, and what was right as (ratios, seeds, samples)."""
    require_columns(samples, [*by, "ratio", "seed", "sample", "correct"], "The best ratio")
    trained = samples[samples["ratio"].notna()].astype({"correct": float})
    require_columns(trained, [], "The best ratio of trained networks")
    for group, part in trained.groupby(list(by)):
        wide = part.pivot_table(index=["ratio", "seed"], columns="sample", values="correct")
        ratios, seeds = wide.index.unique("ratio"), wide.index.unique("seed")
        if len(wide) != len(ratios) * len(seeds) or wide.isna().any(axis=None):
            raise InvalidInputError(
                f"Expected every ratio of {group} on the same seeds and samples, but some are missing."
            )
        yield group, ratios.tolist(), wide.sort_index().to_numpy().reshape(len(ratios), len(seeds), -1)
