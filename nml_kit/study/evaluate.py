"""Downstream evaluation of frozen features: ID and OOD protocols, heads fitted and tested once, tidy rows."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import Pipeline

from nml_kit import __version__
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold, samples_to_test, samples_to_train
from nml_kit.heads import LinearProbe, MLPTune, fit_heads
from nml_kit.spectrum import largest_singular_value_ratio, singular_value_entropy, singular_values
from nml_kit.store import Store, fingerprint, replacing, write_tensors

# Raised whenever the same request would give other predictions or spectra.
EVALUATION_VERSION = 3
EVALUATION_KIND = "evaluation"
RESULT_COLUMNS: tuple[str, ...] = (
    "experiment", "profile", "backbone", "ratio", "objective", "seed", "task", "protocol", "train_domain",
    "test_domain", "fraction", "label_noise", "method", "metric", "value", "n", "settings_hash", "version",
)  # fmt: skip
# Labels of a task are classes however few samples there are, and a kernel approximated by all samples is exact.
_EXPECTED_OF_FEW_SAMPLES = ("The number of unique classes is greater than", "n_components > n_samples")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What one head did on one fold: `predictions` (n,) for the test `ids`, singular values of its representation.

    The representation is what the last classifier reads: the raw features for a linear probe, Z = g(F) for MLP tuning
    and NMTune, the transformed features for a Pipeline.
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


def evaluate_fold(
    features: Features, fold: Fold, heads: Mapping[str, BaseEstimator], *, store: Store | None = None
) -> list[Evaluation]:
    """Fit each head, named by its method, on the fold's train samples and predict its test samples once.

    What the store holds is read. Heads are fitted one by one: side by side (`fit_heads`) their last bits would depend
    on the company, which a notebook chooses and a key does not know. A head is any scikit-learn classifier. The test
    split takes no part in fitting. Raises UnknownNameError if the fold names an unknown domain.
    """
    test = samples_to_test(features, fold)
    train = cache(partial(samples_to_train, features, fold))

    def evaluate(method: str) -> Evaluation:
        def build(work: Path) -> dict[str, Any]:
            fitted = fit_all({method: heads[method]}, train())[method]
            write_tensors(work / "entry" / "evaluation.safetensors", outcome(fitted, test))
            return {"task": fold.task, "protocol": fold.protocol, "method": method}

        key = _evaluation_key(features, fold, heads[method])
        arrays = (store or Store()).get_or_build(EVALUATION_KIND, key, build).tensors("evaluation.safetensors")
        return Evaluation(
            fold, method, test.ids, test.labels, arrays["predictions"], arrays["singular_values"],
            settings_hash(heads[method]),
        )  # fmt: skip

    return [evaluate(method) for method in heads]


def outcome(head: BaseEstimator, test: Features) -> dict[str, NDArray[Any]]:
    """The `predictions` (n,) of a fitted head for the test samples and the `singular_values` of what it reads there."""
    represented = test.values
    if hasattr(head, "transform"):
        represented = head.transform(test.values)
    elif isinstance(head, Pipeline) and len(head) > 1:
        represented = head[:-1].transform(test.values)
    return {"predictions": head.predict(test.values), "singular_values": singular_values(represented)}


def fit_all(heads: Mapping[str, BaseEstimator], train: Features) -> dict[str, BaseEstimator]:
    """Clones of the heads fitted to the train samples, by method: our own in one pass, others one by one."""
    own = {method: head for method, head in heads.items() if isinstance(head, LinearProbe | MLPTune)}
    others = {method: head for method, head in heads.items() if method not in own}
    with warnings.catch_warnings():
        for message in _EXPECTED_OF_FEW_SAMPLES:
            warnings.filterwarnings("ignore", message)
        fitted = dict(zip(own, fit_heads(train.values, train.labels, own.values()), strict=True))
        return fitted | {method: clone(head).fit(train.values, train.labels) for method, head in others.items()}


def is_evaluated(features: Features, fold: Fold, heads: Mapping[str, BaseEstimator], store: Store) -> bool:
    """Whether `evaluate_fold` would find all its results in the store."""
    keys = (_evaluation_key(features, fold, head) for head in heads.values())
    return all(store.find(EVALUATION_KIND, key) is not None for key in keys)


def _evaluation_key(features: Features, fold: Fold, head: BaseEstimator) -> dict[str, Any]:
    return {"arrow": "evaluate", "version": EVALUATION_VERSION, "data": features.protocol_fingerprint,
            "train_domains": fold.train_domains, "test_domains": fold.test_domains, **fold.draw,
            "settings": head_settings(head)}  # fmt: skip


def head_settings(head: BaseEstimator) -> dict[str, Any]:
    """The class and parameters of a head as plain data, those of estimators in it (as in a Pipeline) too.

    >>> head_settings(LinearProbe(epochs=3))["parameters"]["epochs"]
    3
    """
    parameters = head.get_params(deep=False)
    return {"head": type(head).__name__, "parameters": {name: _plain(value) for name, value in parameters.items()}}


def settings_hash(head: BaseEstimator) -> str:
    """Twelve hex digits that tell the settings of a head from others', the same in every process."""
    return fingerprint(head_settings(head))[:12]


def _plain(value: Any) -> Any:
    """A parameter without objects: estimators by their settings, functions by their names."""
    if isinstance(value, BaseEstimator):
        return head_settings(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    name = str(getattr(value, "__name__", "<lambda>"))
    if callable(value) and "<" not in name:
        return f"{getattr(value, '__module__', '')}.{name}"
    return value


def result_rows(evaluation: Evaluation, **context: Any) -> list[dict[str, Any]]:
    """One row per metric in the order of RESULT_COLUMNS; `context` gives experiment, profile, backbone, ratio, ….

    Raises InvalidInputError if a column is neither known from the evaluation nor given.
    """
    shared = {
        **context,
        **evaluation.fold.columns,
        "method": evaluation.method,
        "n": len(evaluation.labels),
        "settings_hash": evaluation.settings_hash,
        "version": __version__,
    }
    missing = [column for column in RESULT_COLUMNS if column not in {*shared, "metric", "value"}]
    if missing:
        raise InvalidInputError(f"Expected a value for every result column, but {', '.join(missing)} is missing.")
    rows = [{**shared, "metric": metric, "value": value} for metric, value in evaluation.metrics().items()]
    return [{column: row[column] for column in RESULT_COLUMNS} for row in rows]


def sample_scores(evaluation: Evaluation, **context: Any) -> pd.DataFrame:
    """One row per test sample: its id, its class, what the head said, whether that is right; columns of `context`."""
    fold = evaluation.fold
    columns = {"task": fold.task, "protocol": fold.protocol, "method": evaluation.method,
               "fraction": float(fold.fraction), "label_noise": float(fold.label_noise), **context}  # fmt: skip
    return pd.DataFrame({**columns, "sample": evaluation.ids, "label": evaluation.labels,
                         "prediction": evaluation.predictions, "correct": evaluation.correct})  # fmt: skip


def write_results(run_dir: str | Path, **tables: pd.DataFrame) -> list[Path]:
    """Write each table to `run_dir/<name>.parquet`, whole or not at all; an empty `run_dir` writes nothing."""
    if not str(run_dir):
        return []
    paths = []
    for name, table in tables.items():
        path = Path(run_dir) / f"{name}.parquet"
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False, compression="zstd", compression_level=9)
        paths.append(path)
    return paths
