"""Folds: which samples a head is trained and tested on, how many of them, and with which labels."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int

from nml_kit.errors import InvalidInputError
from nml_kit.features.features import Features
from nml_kit.noise import inject_label_noise


@dataclass(frozen=True)
class Fold:
    """Which samples a head is trained and tested on: always the task's train and test split, of these domains.

    None means all domains. Protocol "ID": train and test share their domains; "OOD": they share none. `fraction` of the
    train samples of each class are used, one at least; `label_noise` is the ratio of their labels that are flipped
    (both fractions). `seed` draws both; test samples stay as they are.
    Raises InvalidInputError for a fraction or a ratio out of range.
    """

    task: str
    protocol: str
    train_domains: tuple[str, ...] | None = None
    test_domains: tuple[str, ...] | None = None
    fraction: float = 1.0
    label_noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InvalidInputError(f"Expected a fraction above 0 and at most 1, got {self.fraction!r}; 10 % is 0.1.")
        if not 0 <= self.label_noise <= 1:
            raise InvalidInputError(f"Expected label_noise from 0 to 1, got {self.label_noise!r}; 10 % is 0.1.")

    @property
    def draw(self) -> dict[str, Any]:
        """What chance decides about the train samples, as part of a key; empty if all are taken as they are."""
        if self.fraction == 1 and self.label_noise == 0:
            return {}
        return {"fraction": float(self.fraction), "label_noise": float(self.label_noise), "seed": int(self.seed)}

    @property
    def columns(self) -> dict[str, Any]:
        """What a table says about the fold: task, protocol, train_domain, test_domain, fraction, label_noise."""
        train, test = ("+".join(domains or ("all",)) for domains in (self.train_domains, self.test_domains))
        domains = {"task": self.task, "protocol": self.protocol, "train_domain": train, "test_domain": test}
        return domains | {"fraction": float(self.fraction), "label_noise": float(self.label_noise)}


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
    names = _two_or_more(task, domains)
    left_out = dict.fromkeys(held_out or names)
    return [Fold(task, "OOD", tuple(other for other in names if other != name), (name,)) for name in left_out]


def train_on_one_domain(task: str, domains: Sequence[str], sources: Sequence[str]) -> list[Fold]:
    """One OOD fold per source domain and other domain: trained on the one, tested on the other.

    Raises InvalidInputError if fewer than two domains are given.
    Source: the paper's section 2 (DomainNet from `real` or from `sketch`; ImageNet and its variants).

    >>> [fold.test_domains for fold in train_on_one_domain("domainnet", ["real", "sketch", "clipart"], ["real"])]
    [('clipart',), ('sketch',)]
    """
    names = _two_or_more(task, domains)
    return [Fold(task, "OOD", (source,), (other,)) for source in sources for other in names if other != source]


def _two_or_more(task: str, domains: Sequence[str]) -> list[str]:
    names = sorted(set(domains))
    if len(names) < 2:
        raise InvalidInputError(f"Task {task!r}: expected at least two domains to leave one out, but got {names}.")
    return names


def samples_to_train(features: Features, fold: Fold) -> Features:
    """The samples that a head is trained on, with the labels that it is told.

    What is drawn depends on the fold's seed and the samples' ids alone: it is the same for every head and backbone and
    for any order of the samples. What is in a fraction is in every larger one; what is flipped at one ratio is flipped
    to the same class at any larger one (`inject_label_noise`). Exactly ⌊label_noise · n + ½⌋ of the n labels used are
    flipped. Raises UnknownNameError if the fold names an unknown domain.

    >>> values, ids = np.zeros((8, 2)), np.array(list("abcdefgh"))
    >>> domains, splits = np.array(["x"] * 8), np.array(["train"] * 8)
    >>> features = Features("toy", values, ids, np.arange(8) % 2, ("even", "odd"), domains, splits, "")
    >>> len(samples_to_train(features, Fold("toy", "ID", fraction=0.5)))
    4
    """
    train = features.select(split="train", domains=fold.train_domains)
    if fold.fraction < 1:
        train = train.take(_stratified(train, fold.fraction, fold.seed))
    if fold.label_noise > 0:
        classes, ratio = len(train.class_names), fold.label_noise
        noise = inject_label_noise(train.labels, ratio, num_classes=classes, seed=fold.seed, ids=train.ids)
        train = replace(train, labels=noise.noisy)
    return train


def samples_to_test(features: Features, fold: Fold) -> Features:
    """The samples that a head is tested on, with their clean labels; UnknownNameError for an unknown domain."""
    return features.select(split="test", domains=fold.test_domains)


def _stratified(train: Features, fraction: float, seed: int) -> Int[np.ndarray, " n"]:
    """Rows, in order, of the first ⌊fraction · n + ½⌋ of each class by a keyed hash of their ids, one at least."""
    key = hashlib.blake2b(f"fraction {int(seed)}".encode()).digest()
    digests = [hashlib.blake2b(str(name).encode(), key=key, digest_size=16).hexdigest() for name in train.ids]
    order = np.argsort(digests, kind="stable")
    of_class = [order[train.labels[order] == label] for label in np.unique(train.labels)]
    return np.sort(np.concatenate([rows[: max(1, int(fraction * len(rows) + 0.5))] for rows in of_class]))
