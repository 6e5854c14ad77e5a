"""Downstream evaluation of frozen features: ID and OOD protocols, heads fitted and tested once, tidy rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score, f1_score

from nml_kit._version import __version__
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features
from nml_kit.files import replacing, write_tensors
from nml_kit.heads import LinearProbe, MLPTune, fit_heads
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
    features: Features, fold: Fold, heads: Mapping[str, BaseEstimator], *, store: Store | None = None
) -> list[Evaluation]:
    """Fit each head, named by its method, on the fold's train samples and predict its test samples once.

    What the store holds is read; if a head is missing, all of them are fitted together (`fit_heads`), so that a result
    never depends on which others were there. A head is any scikit-learn classifier. The test split takes no part in
    fitting. Raises UnknownNameError if the fold names an unknown domain.
    """
    test = features.select(split="test", domains=fold.test_domains)

    @cache
    def fitted() -> dict[str, BaseEstimator]:
        train = features.select(split="train", domains=fold.train_domains)
        return _fit_all(heads, train)

    def evaluate(method: str) -> Evaluation:
        def build(work: Path) -> dict[str, Any]:
            head = fitted()[method]
            represented = head.transform(test.values) if hasattr(head, "transform") else test.values
            arrays = {"predictions": head.predict(test.values), "singular_values": singular_values(represented)}
            write_tensors(work / "entry" / "evaluation.safetensors", arrays)
            return {"task": fold.task, "protocol": fold.protocol, "method": method}

        key = _evaluation_key(features, fold, heads[method])
        arrays = (store or Store()).get_or_build(EVALUATION_KIND, key, build).tensors("evaluation.safetensors")
        settings_hash = fingerprint(_settings(heads[method]))[:12]
        return Evaluation(
            fold, method, test.ids, test.labels, arrays["predictions"], arrays["singular_values"], settings_hash
        )

    return [evaluate(method) for method in heads]


def _fit_all(heads: Mapping[str, BaseEstimator], train: Features) -> dict[str, BaseEstimator]:
    """Our own heads in one pass, others one by one."""
    own = {method: head for method, head in heads.items() if isinstance(head, LinearProbe | MLPTune)}
    fitted = dict(zip(own, fit_heads(train.values, train.labels, own.values()), strict=True))
    others = {
        method: clone(head).fit(train.values, train.labels) for method, head in heads.items() if method not in own
    }
    return fitted | others


def is_evaluated(features: Features, fold: Fold, heads: Mapping[str, BaseEstimator], store: Store) -> bool:
    """Whether `evaluate_fold` would find all its results in the store."""
    keys = (_evaluation_key(features, fold, head) for head in heads.values())
    return all(store.find(EVALUATION_KIND, key) is not None for key in keys)


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
