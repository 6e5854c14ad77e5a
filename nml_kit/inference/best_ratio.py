"""Which noise ratio is best, and how sure one is: the bootstrap distribution of the ratio with the highest accuracy."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nml_kit.errors import InvalidInputError

_BATCH = 200  # resamples at a time: memory stays at that many rows of sample counts
_COLUMNS = ["ratio", "seed", "sample", "correct"]


def probabilities_of_best(correct: NDArray[np.float64], *, resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Share of bootstrap resamples in which each ratio has the highest mean, float64 (R,), summing to 1.

    `correct` is (R, S, N): R ratios on the same S seeds and N test samples (0 or 1, or differences). Seeds and samples
    are resampled jointly for all ratios, independently of each other; ratios that tie share the resample equally.
    With one seed the result knows the chance of samples only. Raises InvalidInputError for another shape or NaN.

    >>> probabilities_of_best(np.stack([np.zeros((2, 9)), np.ones((2, 9)), np.ones((2, 9))])).tolist()
    [0.0, 0.5, 0.5]
    """
    block = np.asarray(correct, dtype=np.float64)
    if block.ndim != 3 or 0 in block.shape or np.isnan(block).any():
        raise InvalidInputError(f"Expected (ratios, seeds, samples) without missing values, got {block.shape}.")
    ratios, seeds, samples = block.shape
    generator, wins = np.random.default_rng(seed), np.zeros(ratios)
    for start in range(0, resamples, _BATCH):
        size = min(_BATCH, resamples - start)
        seed_counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=size).astype(np.float64)
        sample_counts = generator.multinomial(samples, np.full(samples, 1 / samples), size=size).astype(np.float64)
        # Counts, not means: of 0s and 1s these sums are whole numbers, and ties are exact.
        per_seed = block.reshape(-1, samples) @ sample_counts.T
        totals = np.einsum("rsb,bs->br", per_seed.reshape(ratios, seeds, size), seed_counts)
        best = totals == totals.max(axis=1, keepdims=True)
        wins += (best / best.sum(axis=1, keepdims=True)).sum(axis=0)
    return wins / resamples


def best_ratio_table(
    samples: pd.DataFrame, by: Sequence[str] = ("task", "protocol"), *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """How probable it is that each ratio is the best, for each group of `by`: by…, ratio, accuracy, probability.

    `samples` has the columns of `Study.samples` of one method; the random baseline (ratio NaN) is left out. Accuracy
    and probability (see `probabilities_of_best`) are fractions. Raises InvalidInputError if the ratios of a group were
    not tested on the same seeds and samples.
    """
    rows = []
    for group, ratios, block in _blocks(samples, by):
        probabilities = probabilities_of_best(block, resamples=resamples, seed=seed)
        rows += [(*group, *row) for row in zip(ratios, block.mean(axis=(1, 2)), probabilities, strict=True)]
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
        rows.append(
            (*group, part["ratio"].iloc[0], part["probability"].iloc[0], chosen, len(chosen) == 1, 0.0 in chosen)
        )
    return pd.DataFrame(rows, columns=[*by, "best", "probability", "candidates", "established", "includes_clean"])


def chance_of_established(
    samples: pd.DataFrame, by: Sequence[str] = ("task", "protocol"), *, level: float = 0.95, shuffles: int = 20,
    resamples: int = 500, seed: int = 0,
) -> float:  # fmt: skip
    """How often a group of `by` would get an established best ratio if the ratio did not matter, a fraction.

    Networks of one seed are then exchangeable: `shuffles` times the ratios of each seed are permuted, and the share of
    groups is counted in which some ratio reaches `level`. The bootstrap is no test; this says what it is worth.
    """
    generator, reached, groups = np.random.default_rng(seed), 0, 0
    for _, _, block in _blocks(samples, by):
        for _ in range(shuffles):
            shuffled = np.stack([block[generator.permutation(len(block)), place] for place in range(block.shape[1])], 1)
            reached += probabilities_of_best(shuffled, resamples=resamples, seed=seed).max() >= level
            groups += 1
    return reached / groups


def _blocks(
    samples: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[tuple[Hashable, ...], list[float], NDArray[np.float64]]]:
    """Each group of `by`, its ratios ascending, and what was right as (ratios, seeds, samples)."""
    missing = [column for column in [*by, *_COLUMNS] if column not in samples]
    if missing or samples["ratio"].notna().sum() == 0:
        raise InvalidInputError(f"Expected scores of trained networks with {', '.join([*by, *_COLUMNS])}; got "
                                f"{len(samples)} rows without {', '.join(missing) or 'a ratio'}.")  # fmt: skip
    for group, part in samples[samples["ratio"].notna()].groupby(list(by)):
        wide = part.assign(correct=part["correct"].astype(float)).pivot_table(
            index=["ratio", "seed"], columns="sample", values="correct"
        )
        ratios, seeds = wide.index.unique("ratio"), wide.index.unique("seed")
        if len(wide) != len(ratios) * len(seeds) or wide.isna().any(axis=None):
            raise InvalidInputError(
                f"Expected every ratio of {group} on the same seeds and samples, but some are missing."
            )
        yield group, ratios.tolist(), wide.sort_index().to_numpy().reshape(len(ratios), len(seeds), -1)
