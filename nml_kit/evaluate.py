"""Downstream evaluation of frozen features: ID and OOD protocols, tidy rows, paired bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score, f1_score

from nml_kit._version import __version__
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features
from nml_kit.files import replacing, write_tensors
from nml_kit.spectrum import largest_singular_value_ratio, singular_value_entropy, singular_values
from nml_kit.store import Store, fingerprint

# Raised whenever the same request would give other predictions or spectra.
EVALUATION_VERSION = 2
EVALUATION_KIND = "evaluation"
RESULT_COLUMNS = (
    "experiment", "profile", "backbone", "ratio", "objective", "seed", "task", "protocol", "train_domain",
    "test_domain", "fraction", "method", "metric", "value", "n", "settings_hash", "version",
)  # fmt: skip


@dataclass(frozen=True)
class Fold:
    """Which samples a head is trained and tested on: always the task's train and test split, of these domains.

    None means all domains. Protocol "ID": train and test share their domains; "OOD": they share none.
    """

    task: str
    protocol: str
    train_domains: tuple[str, ...] | None = None
    test_domains: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one head did on one fold: `predictions` (n,) for the test `ids`, singular values of its representation.

    The representation is the raw features for a linear probe and Z = g(F) for MLP tuning and NMTune.
    """

    fold: Fold
    method: str
    ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    singular_values: NDArray[np.float64]
    settings_hash: str

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.predictions == self.labels

    def metrics(self) -> dict[str, float]:
        """Accuracy and macro F1 (fractions), SVE and LSVR (nats) on the fold's test samples."""
        return {
            "accuracy": float(accuracy_score(self.labels, self.predictions)),
            "macro_f1": float(f1_score(self.labels, self.predictions, average="macro",
                                       labels=np.unique(self.labels), zero_division=0)),
            "sve": singular_value_entropy(self.singular_values),
            "lsvr": largest_singular_value_ratio(self.singular_values),
        }  # fmt: skip


def in_domain_fold(task: str) -> Fold:
    """Train and test on all domains pooled.

    >>> in_domain_fold("digits").protocol
    'ID'
    """
    return Fold(task, "ID")


def leave_one_domain_out(task: str, domains: Sequence[str], held_out: Sequence[str] | None = None) -> list[Fold]:
    """One OOD fold per held-out domain: trained on all others, tested on it.

    Raises InvalidInputError if fewer than two domains are given.

    >>> [fold.test_domains for fold in leave_one_domain_out("icons", ["filled", "outline"])]
    [('filled',), ('outline',)]
    """
    names = sorted(set(domains))
    if len(names) < 2:
        raise InvalidInputError(f"Task {task!r}: expected at least two domains to leave one out, but got {names}.")
    return [
        Fold(task, "OOD", tuple(name for name in names if name != left_out), (left_out,))
        for left_out in (held_out or names)
    ]


def evaluate_fold(
    features: Features, fold: Fold, method: str, head: BaseEstimator, *, store: Store | None = None
) -> Evaluation:
    """Fit `head` on the fold's train samples and predict its test samples once: read from the store, or computed.

    The test split takes no part in fitting. Raises UnknownNameError if the fold names an unknown domain.
    """
    test = features.select(split="test", domains=fold.test_domains)

    def build(work: Path) -> dict[str, Any]:
        train = features.select(split="train", domains=fold.train_domains)
        fitted = clone(head).fit(train.values, train.labels)
        represented = fitted.transform(test.values) if hasattr(fitted, "transform") else test.values
        arrays = {"predictions": fitted.predict(test.values), "singular_values": singular_values(represented)}
        write_tensors(work / "entry" / "evaluation.safetensors", arrays)
        return {"task": fold.task, "protocol": fold.protocol, "method": method, "train_samples": len(train)}

    entry = (store or Store()).get_or_build(EVALUATION_KIND, _evaluation_key(features, fold, head), build)
    arrays = entry.tensors("evaluation.safetensors")
    settings_hash = fingerprint(_settings(head))[:12]
    return Evaluation(
        fold, method, test.ids, test.labels, arrays["predictions"], arrays["singular_values"], settings_hash
    )


def is_evaluated(features: Features, fold: Fold, head: BaseEstimator, store: Store) -> bool:
    """Whether `evaluate_fold` would find its result in the store."""
    return store.find(EVALUATION_KIND, _evaluation_key(features, fold, head)) is not None


def _evaluation_key(features: Features, fold: Fold, head: BaseEstimator) -> dict[str, Any]:
    return {"arrow": "evaluate", "version": EVALUATION_VERSION, "data": features.protocol_fingerprint,
            "train_domains": fold.train_domains, "test_domains": fold.test_domains,
            "settings": _settings(head)}  # fmt: skip


def _settings(head: BaseEstimator) -> dict[str, Any]:
    return {"head": type(head).__name__, "parameters": head.get_params()}


def result_rows(evaluation: Evaluation, **context: Any) -> list[dict[str, Any]]:
    """One row per metric in the order of RESULT_COLUMNS; `context` gives experiment, profile, backbone, ratio, ….

    Raises InvalidInputError if a column is neither known from the evaluation nor given.
    """
    fold = evaluation.fold
    shared = {
        "task": fold.task,
        "protocol": fold.protocol,
        "train_domain": "+".join(fold.train_domains or ("all",)),
        "test_domain": "+".join(fold.test_domains or ("all",)),
        "method": evaluation.method,
        "n": len(evaluation.labels),
        "settings_hash": evaluation.settings_hash,
        "version": __version__,
        **context,
    }
    missing = [column for column in RESULT_COLUMNS if column not in {*shared, "metric", "value"}]
    if missing:
        raise InvalidInputError(f"Expected a value for every result column, but {', '.join(missing)} is missing.")
    rows = [{**shared, "metric": metric, "value": value} for metric, value in evaluation.metrics().items()]
    return [{column: row[column] for column in RESULT_COLUMNS} for row in rows]


def sample_scores(evaluation: Evaluation, **context: Any) -> pd.DataFrame:
    """One row per test sample: its id and whether the head was right, with the columns of `context`."""
    fold = evaluation.fold
    columns = {"task": fold.task, "protocol": fold.protocol, "method": evaluation.method, **context}
    return pd.DataFrame({**columns, "sample": evaluation.ids, "correct": evaluation.correct})


def bootstrap_mean(
    blocks: Sequence[NDArray[np.float64]], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean over blocks of each block's mean, with a 95 % percentile bootstrap interval: (mean, low, high).

    A block is a (seeds, samples) array, one per task. Seeds are resampled jointly for all blocks, samples within
    each block, independently of each other, so the interval covers both sources of chance; with a single seed it
    covers samples only. With few seeds such intervals tend to be too narrow.
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

    count = seeds.pop()
    data = [np.arange(max(count, 2)) % count, *(np.arange(block.shape[1]) for block in blocks)]
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

    `of` is "method" (baseline "LP") or "ratio" (baseline 0.0); `by` are the groups. Columns: by…, of, mean, low, high.
    Raises InvalidInputError if the baseline does not occur, or its seeds and samples are not those of the others.
    """
    pairs = ["task", "protocol", "method", "ratio", "seed", "sample"]
    pairs.remove(of)
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


def write_results(run_dir: str | Path, **tables: pd.DataFrame) -> list[Path]:
    """Write each table to `run_dir/<name>.parquet`, whole or not at all; an empty `run_dir` writes nothing."""
    if not str(run_dir):
        return []
    paths = []
    for name, table in tables.items():
        path = Path(run_dir) / f"{name}.parquet"
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False)
        paths.append(path)
    return paths
