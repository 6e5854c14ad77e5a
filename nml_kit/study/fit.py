"""From features to a result, kept in the store: choose settings on a validation part, fit, test once.

The validation part is a fifth of a fold's train samples, stratified by class, drawn by a seed from their ids: the same
for all methods and backbones. If the fold flips labels, it is told flipped ones too. What was chosen is fitted again to
all train samples. The train samples of an OOD fold are of its source domains alone, so that is where the choice is
made: who meets a new domain has no labels of it, and a choice by accuracy on the held-out domain ("oracle" selection;
Gulrajani and Lopez-Paz, ICLR 2021) would report what nobody can have. One candidate alone needs no choice.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import Pipeline

from nml_kit import __version__
from nml_kit.backbones import Backbone
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold, samples_to_test, samples_to_train
from nml_kit.heads import LinearProbe, MLPTune, fit_heads
from nml_kit.pretraining import in_parallel
from nml_kit.spectrum import cumulative_energy, largest_singular_value_ratio, singular_value_entropy, singular_values
from nml_kit.store import Store, write_tensors
from nml_kit.study.methods import Candidates, head_settings, settings_hash
from nml_kit.tuning import Tuning, tune_on, with_features_of

# Raised whenever the same request would choose otherwise or give other predictions or spectra.
FIT_VERSION = 1
FIT_KIND = "fit"
VALIDATION_FRACTION = 0.2
RESULT_COLUMNS: tuple[str, ...] = (
    "experiment", "profile", "recipe", "noise", "backbone", "ratio", "objective", "seed", "task", "protocol",
    "train_domain", "test_domain", "fraction", "label_noise", "method", "metric", "value", "n", "settings_hash",
    "version",
)  # fmt: skip
# Labels of a task are classes however few samples there are, and a kernel approximated by all samples is exact.
_EXPECTED_OF_FEW_SAMPLES = ("The number of unique classes is greater than", "n_components > n_samples")


@dataclass(frozen=True, eq=False)
class Request:
    """A method to fit and test on a fold: its `candidates` by name, all heads, or all `Tuning` of the `backbone`.

    `features` are those of the whole task; of a network that is tuned, the frozen ones.
    """

    features: Features
    fold: Fold
    candidates: Candidates
    method: str
    seed: int = 0
    task: Task | None = None
    backbone: Backbone | None = None

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything that decides the result. The names of method and candidates do not."""
        key = {"arrow": "fit", "version": FIT_VERSION, "data": self.features.protocol_fingerprint,
               "train_domains": self.fold.train_domains, "test_domains": self.fold.test_domains,
               "draw": self.fold.draw, "candidates": list(map(head_settings, self.candidates.values()))}  # fmt: skip
        choice = {"validation": {"fraction": VALIDATION_FRACTION, "seed": self.seed}}
        return key | (choice if len(self.candidates) > 1 else {})


@dataclass(frozen=True, eq=False)
class Fit:
    """What the chosen one of the `candidates` said of the test samples of a fold, rows in the order of `ids`.

    `validation_accuracy` (fractions) is empty if there was one candidate. `singular_values` are those of what the last
    classifier reads of the test samples: the raw features for a linear probe, Z = g(F) for MLP tuning and NMTune, the
    transformed features for a Pipeline, the tuned features for a tuned network.
    """

    fold: Fold
    method: str
    candidates: tuple[str, ...]
    validation_accuracy: Float[np.ndarray, " candidates"]
    settings_hash: str
    test: Features
    predictions: Int[np.ndarray, " n"]
    singular_values: Float[np.ndarray, " r"]

    @property
    def chosen(self) -> int:
        """The place of the chosen candidate: the most accurate one, of equals the first."""
        return _best(self.validation_accuracy)

    def metrics(self) -> dict[str, float]:
        """Accuracy and macro F1 (fractions), SVE and LSVR (nats) on the fold's test samples."""
        labels, values = self.test.labels, self.singular_values
        macro_f1 = f1_score(labels, self.predictions, average="macro", labels=np.unique(labels), zero_division=0)
        scores = {"accuracy": float(accuracy_score(labels, self.predictions)), "macro_f1": float(macro_f1)}
        return scores | {"sve": singular_value_entropy(values), "lsvr": largest_singular_value_ratio(values)}

    def rows(self, **context: Any) -> list[dict[str, Any]]:
        """A result row per metric, in RESULT_COLUMNS; `context` gives what the fit does not know (backbone, ratio, …).

        Raises InvalidInputError if a column is neither known nor given.
        """
        shared = {**context, **self.fold.columns, "method": self.method, "n": len(self.test),
                  "settings_hash": self.settings_hash, "version": __version__}  # fmt: skip
        rows = [{**shared, "metric": metric, "value": value} for metric, value in self.metrics().items()]
        if missing := [column for column in RESULT_COLUMNS if column not in rows[0]]:
            raise InvalidInputError(f"Expected a value for every result column, but {', '.join(missing)} is missing.")
        return [{column: row[column] for column in RESULT_COLUMNS} for row in rows]

    def samples(self, **context: Any) -> pd.DataFrame:
        """One row per test sample: its id, domain and class, what the head said, whether that is right."""
        test = self.test
        correct = self.predictions == test.labels
        columns = {"domain": test.domains, "sample": test.ids, "label": test.labels, "prediction": self.predictions}
        return self._table(context, **columns, correct=correct).drop(columns="test_domain")

    def spectrum(self, **context: Any) -> pd.DataFrame:
        """One row per singular value: index, share, cumulative_energy, total."""
        values = self.singular_values
        index, shares, energy = np.arange(1, len(values) + 1), values / values.sum(), cumulative_energy(values)
        return self._table(context, index=index, share=shares, cumulative_energy=energy, total=values.sum())

    def selection(self, **context: Any) -> pd.DataFrame:
        """One row per candidate: candidate, validation_accuracy, chosen; none if there was nothing to choose."""
        names = list(self.candidates) if len(self.candidates) > 1 else []
        chosen = np.arange(len(names)) == self.chosen
        return self._table(context, candidate=names, validation_accuracy=self.validation_accuracy, chosen=chosen)

    def _table(self, context: Mapping[str, Any], **columns: Any) -> pd.DataFrame:
        return pd.DataFrame({**context, **self.fold.columns, "method": self.method, **columns})


def fit_requests(
    requests: Sequence[Request], *, store: Store | None = None, jobs: int | None = None, progress: bool = True
) -> list[Fit]:
    """The fit of each request, in order; what the store lacks is made in `jobs` processes (None: one per core).

    Raises InvalidInputError if a choice is asked for and no class has two train samples, UnknownNameError if a fold
    names an unknown domain.
    """
    store = store or Store()
    missing = [request for request in requests if store.find(FIT_KIND, request.key) is None]
    in_parallel([(fit_request, (request, store)) for request in missing], jobs, "heads" if progress else "")
    return [fit_request(request, store) for request in requests]


def fit_request(request: Request, store: Store) -> Fit:
    """The fit of one request: read from the store, or made and kept there."""
    names, fold = tuple(request.candidates), request.fold
    test = samples_to_test(request.features, fold)

    def build(work: Path) -> dict[str, Any]:
        train = samples_to_train(request.features, fold)
        with warnings.catch_warnings():
            for message in _EXPECTED_OF_FEW_SAMPLES:
                warnings.filterwarnings("ignore", message)
            accuracy = _validation_accuracy(request, train) if len(names) > 1 else np.zeros(0)
            winner = names[_best(accuracy)]
            [(head, seen)] = _fitted(request, {winner: request.candidates[winner]}, train, test)
        write_tensors(work / "entry" / "fit.safetensors", {"validation_accuracy": accuracy, **outcome(head, seen)})
        scores = dict(zip(names, accuracy.tolist(), strict=False))
        return {**fold.columns, "method": request.method, "chosen": winner, "validation": scores}

    arrays = store.get_or_build(FIT_KIND, request.key, build).tensors("fit.safetensors")
    accuracy, predictions, values = (arrays[n] for n in ("validation_accuracy", "predictions", "singular_values"))
    settings = settings_hash(request.candidates[names[_best(accuracy)]])
    return Fit(fold, request.method, names, accuracy, settings, test, predictions, values)


def _best(accuracy: Float[np.ndarray, " candidates"]) -> int:
    """The place of the most accurate candidate, of equals the first; 0 if there was no choice."""
    return int(np.argmax(accuracy)) if len(accuracy) else 0


def outcome(head: BaseEstimator, test: Features) -> dict[str, np.ndarray]:
    """The `predictions` (n,) of a fitted head for the test samples and the `singular_values` of what it reads there."""
    represented = test.values
    if hasattr(head, "transform"):
        represented = head.transform(test.values)
    elif isinstance(head, Pipeline) and len(head) > 1:
        represented = head[:-1].transform(test.values)
    return {"predictions": head.predict(test.values), "singular_values": singular_values(represented)}


def validation_rows(labels: Int[np.ndarray, " n"], *, seed: int) -> Int[np.ndarray, " m"]:
    """Rows of a stratified validation part, in order: about a fifth of each class.

    As many as classes at least; every class keeps a sample for training, so one with a single sample is not validated
    on. Raises InvalidInputError if no class has two samples.

    >>> labels = np.repeat([0, 1], 10)
    >>> labels[validation_rows(labels, seed=0)].tolist()
    [0, 0, 1, 1]
    """
    classes, counts = np.unique(labels, return_counts=True)
    repeated = np.flatnonzero(np.isin(labels, classes[counts > 1]))
    if not len(repeated):
        raise InvalidInputError(
            f"Expected a class with at least two train samples to carve a validation part from, got {len(labels)} "
            f"samples of {len(classes)} classes; use more of the train samples, or settings that need no choice."
        )
    size = max(round(VALIDATION_FRACTION * len(repeated)), int((counts > 1).sum()))
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=size, random_state=seed)
    _, part = next(splitter.split(repeated, labels[repeated]))
    return np.sort(repeated[part])


def _validation_accuracy(request: Request, train: Features) -> Float[np.ndarray, " candidates"]:
    """Accuracy of each candidate, fitted to the rest of the train samples, on the validation part."""
    held_out = np.zeros(len(train), dtype=bool)
    by_id = np.argsort(train.ids)  # not the order of files
    held_out[by_id[validation_rows(train.labels[by_id], seed=request.seed)]] = True
    fitted = _fitted(request, request.candidates, train.take(~held_out), train.take(held_out))
    return np.array([accuracy_score(part.labels, head.predict(part.values)) for head, part in fitted])


def _fitted(
    request: Request, candidates: Candidates, train: Features, test: Features
) -> Iterator[tuple[BaseEstimator, Features]]:
    """Each candidate fitted to the train samples, with the test samples as it sees them: our own heads in one pass.

    Side by side the last bits depend on the company: what is tested is fitted alone.
    """
    if not any(isinstance(candidate, Tuning) for candidate in candidates.values()):
        own = [isinstance(head, LinearProbe | MLPTune) for head in candidates.values()]
        fitted = iter(fit_heads(train.values, train.labels, compress(candidates.values(), own)))
        for head, is_own in zip(candidates.values(), own, strict=True):
            yield next(fitted) if is_own else clone(head).fit(train.values, train.labels), test
    elif request.task is None or request.backbone is None:
        raise InvalidInputError(
            f"Method {request.method!r}: expected a network to tune, but there are features alone; use heads instead."
        )
    else:
        for tuning in candidates.values():
            model = tune_on(request.task, request.backbone, train, tuning)
            yield model.head, with_features_of(model.backbone, request.task, test)
