"""Choosing a head's settings honestly: on a part carved from the training data; the test samples are seen once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import accuracy_score
from sklearn.model_selection import ParameterGrid, StratifiedShuffleSplit

from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold, samples_to_test, samples_to_train
from nml_kit.pretraining import in_parallel
from nml_kit.store import Store, write_tensors
from nml_kit.study.evaluate import Evaluation, fit_all, head_settings, outcome, settings_hash

# Raised whenever the same request would choose otherwise or give other predictions or spectra.
SELECTION_VERSION = 1
SELECTION_KIND = "selection"
VALIDATION_FRACTION = 0.2

Candidates = Mapping[str, BaseEstimator | tuple[BaseEstimator, Mapping[str, Sequence[Any]]]]


@dataclass(frozen=True, eq=False)
class Selection:
    """Which of the `candidates` was `chosen` (a position), by their `validation_accuracy` (C,), a fraction.

    `evaluation` is that of the chosen one, fitted to all train samples of its fold and tested once.
    """

    candidates: tuple[str, ...]
    validation_accuracy: NDArray[np.float64]
    chosen: int
    evaluation: Evaluation


def expanded(candidates: Candidates) -> dict[str, BaseEstimator]:
    """Every candidate by its name: an estimator as it is, (estimator, grid) once for each point of the grid.

    A grid maps parameters to the values to try (`sklearn.model_selection.ParameterGrid`). Raises InvalidInputError if
    there is no candidate.

    >>> from sklearn.linear_model import RidgeClassifier
    >>> list(expanded({"ridge": (RidgeClassifier(), {"alpha": [0.1, 1.0]})}))
    ['ridge alpha=0.1', 'ridge alpha=1.0']
    """
    heads = {}
    for name, candidate in candidates.items():
        base, grid = candidate if isinstance(candidate, tuple) else (candidate, {})
        for point in ParameterGrid(grid):
            shown = [f"{parameter}={value}" for parameter, value in sorted(point.items())]
            heads[" ".join([name, *shown])] = clone(base).set_params(**point)
    if not heads:
        raise InvalidInputError("Expected at least one candidate to select from, got none.")
    return heads


def validation_rows(labels: NDArray[np.int64], *, seed: int, fraction: float = VALIDATION_FRACTION) -> NDArray[np.intp]:
    """Rows of a stratified validation part, in order: about `fraction` of each class of the labels (N,).

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
    size = max(round(fraction * len(repeated)), int((counts > 1).sum()))
    splitter = StratifiedShuffleSplit(n_splits=1, test_size=size, random_state=seed)
    _, part = next(splitter.split(repeated, labels[repeated]))
    return np.sort(repeated[part])


def validation_split(train: Features, seed: int) -> tuple[Features, Features]:
    """Train samples without the validation part, and that part: drawn by `seed` from their ids, see `select_head`."""
    held_out = np.zeros(len(train), dtype=bool)
    by_id = np.argsort(train.ids)  # not the order of files
    held_out[by_id[validation_rows(train.labels[by_id], seed=seed)]] = True
    return train.take(~held_out), train.take(held_out)


def select_head(
    features: Features, fold: Fold, candidates: Candidates, *, method: str, seed: int, store: Store | None = None
) -> Selection:
    """Choose the candidate that is most accurate on a validation part of the fold's train samples, then test it once.

    `candidates` maps names to scikit-learn classifiers, or to (classifier, grid of parameters), see `expanded`; of
    equals the first is chosen. The validation part is a fifth of the train samples, stratified by class, drawn by
    `seed` from their ids, the same for all candidates and backbones; if the fold flips labels, it is told flipped ones
    too. The chosen candidate is fitted again to all train samples. `method` names the family in tables.

    The train samples of an OOD fold are of its source domains alone, so that is where the choice is made. That is the
    honest protocol: who meets a new domain has no labels of it, and a choice by accuracy on the held-out domain ("test
    domain" or "oracle" selection; Gulrajani and Lopez-Paz, ICLR 2021) would report what nobody can have.

    The store keeps the result. Raises InvalidInputError if there is no candidate or no class has two train samples,
    UnknownNameError if the fold names an unknown domain.
    """
    heads = expanded(candidates)
    test = samples_to_test(features, fold)

    def build(work: Path) -> dict[str, Any]:
        train = samples_to_train(features, fold)
        accuracy = _validation_accuracy(heads, train, seed)
        winner = list(heads)[int(np.argmax(accuracy))]
        fitted = fit_all({winner: heads[winner]}, train)[winner]
        arrays = {"validation_accuracy": accuracy, **outcome(fitted, test)}
        write_tensors(work / "entry" / "selection.safetensors", arrays)
        scores = dict(zip(heads, accuracy.tolist(), strict=True))
        return {"task": fold.task, "protocol": fold.protocol, "method": method, "chosen": winner, "validation": scores}

    key = _selection_key(features, fold, heads, seed)
    arrays = (store or Store()).get_or_build(SELECTION_KIND, key, build).tensors("selection.safetensors")
    return as_selection(arrays, heads, fold, method, test)


def as_selection(
    arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, BaseEstimator], fold: Fold, method: str, test: Features
) -> Selection:
    """The selection whose validation accuracies, predictions and singular values were stored."""
    chosen = int(np.argmax(arrays["validation_accuracy"]))
    evaluation = Evaluation(
        fold, method, test.ids, test.labels, arrays["predictions"], arrays["singular_values"],
        settings_hash(list(settings.values())[chosen]),
    )  # fmt: skip
    return Selection(tuple(settings), arrays["validation_accuracy"], chosen, evaluation)


class Choice(NamedTuple):
    """What `select_head` is asked for."""

    features: Features
    fold: Fold
    candidates: Candidates
    method: str
    seed: int


def select_heads(choices: Sequence[Choice], *, store: Store, jobs: int | None, progress: bool) -> list[Selection]:
    """`select_head` of each, in order; what the store lacks is made in `jobs` processes (None: one per core)."""

    def is_known(choice: Choice) -> bool:
        return is_selected(choice.features, choice.fold, choice.candidates, seed=choice.seed, store=store)

    in_parallel([(_select, (choice, store)) for choice in choices if not is_known(choice)], jobs,
                "heads" if progress else "")  # fmt: skip
    return [_select(choice, store) for choice in choices]


def _select(choice: Choice, store: Store) -> Selection:
    features, fold, candidates, method, seed = choice
    return select_head(features, fold, candidates, method=method, seed=seed, store=store)


def is_selected(features: Features, fold: Fold, candidates: Candidates, *, seed: int, store: Store) -> bool:
    """Whether `select_head` would find its result in the store."""
    return store.find(SELECTION_KIND, _selection_key(features, fold, expanded(candidates), seed)) is not None


def selection_rows(selection: Selection, **context: Any) -> pd.DataFrame:
    """One row per candidate: columns of `context` and of the fold, method, candidate, validation_accuracy, chosen."""
    columns = {**context, **selection.evaluation.fold.columns, "method": selection.evaluation.method}
    chosen = np.arange(len(selection.candidates)) == selection.chosen
    return pd.DataFrame({
        **columns, "candidate": list(selection.candidates),
        "validation_accuracy": np.asarray(selection.validation_accuracy), "chosen": chosen,
    })  # fmt: skip


def _validation_accuracy(heads: Mapping[str, BaseEstimator], train: Features, seed: int) -> NDArray[np.float64]:
    """Accuracy (C,) of each head, fitted to the rest of the train samples, on the validation part."""
    rest, part = validation_split(train, seed)
    fitted = fit_all(heads, rest)
    return np.array([accuracy_score(part.labels, fitted[name].predict(part.values)) for name in heads])


def _selection_key(features: Features, fold: Fold, heads: Mapping[str, BaseEstimator], seed: int) -> dict[str, Any]:
    return {"arrow": "select", "version": SELECTION_VERSION, "data": features.protocol_fingerprint,
            "train_domains": fold.train_domains, "test_domains": fold.test_domains, "draw": fold.draw,
            "validation": {"fraction": VALIDATION_FRACTION, "seed": seed},
            "candidates": [[name, head_settings(head)] for name, head in heads.items()]}  # fmt: skip
