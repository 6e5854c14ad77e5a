"""What a fold draws from the train samples: exact shares, nested, decided by id and seed; test samples untouched."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold, in_domain_fold, samples_to_test, samples_to_train
from nml_kit.heads import LinearProbe, NMTune
from nml_kit.study import FIT_KIND, FIT_VERSION, Request, fit_requests

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture
def features():
    """Classes of 100, 40 and 3 train samples, 60 test samples, in two domains, in no order."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat([0, 1, 2, 0, 1, 2], [100, 40, 3, 20, 20, 20]))
    splits = np.full(len(labels), "train")
    for label in range(3):
        splits[np.flatnonzero(labels == label)[:20]] = "test"
    values = generator.normal(size=(len(labels), 5)).astype(np.float32)
    values[:, :3] += 2 * np.eye(3, dtype=np.float32)[labels]
    ids = np.array([f"s{i}" for i in range(len(labels))])
    domains = np.where(np.arange(len(labels)) % 2, "a", "b")
    return Features("toy", values, ids, labels, ("x", "y", "z"), domains, splits, "fingerprint")


def shuffled(features: Features) -> Features:
    rows = np.random.default_rng(7).permutation(len(features))
    return replace(features, values=features.values[rows], ids=features.ids[rows], labels=features.labels[rows],
                   domains=features.domains[rows], splits=features.splits[rows])  # fmt: skip


def told(features: Features, fold: Fold) -> dict[str, int]:
    train = samples_to_train(features, fold)
    return dict(zip(train.ids.tolist(), train.labels.tolist(), strict=True))


def test_a_fraction_is_that_of_every_class_and_one_sample_at_least(features):
    counts = np.bincount(features.select(split="train").labels)
    for fraction in FRACTIONS:
        drawn = np.bincount(samples_to_train(features, Fold("toy", "ID", fraction=fraction)).labels)
        np.testing.assert_array_equal(drawn, np.maximum(1, np.floor(fraction * counts + 0.5)))


def test_fractions_are_nested_and_seeds_differ(features):
    parts = [told(features, Fold("toy", "ID", fraction=fraction, seed=3)) for fraction in FRACTIONS]
    for smaller, larger in itertools.pairwise(parts):
        assert smaller.items() <= larger.items()
    assert told(features, Fold("toy", "ID", fraction=0.25, seed=4)) != parts[1]


def test_the_draw_depends_on_ids_not_on_the_order_or_the_features(features):
    fold = Fold("toy", "OOD", ("a",), ("b",), fraction=0.5, label_noise=0.3, seed=1)
    other = replace(shuffled(features), fingerprint="another backbone")
    assert told(features, fold) == told(other, fold)


def test_an_exact_share_of_the_labels_is_flipped_nested_over_ratios(features):
    clean = told(features, in_domain_fold("toy"))
    flipped: list[set[tuple[str, int]]] = []
    for ratio in (0.0, 0.1, 0.3, 0.5):
        noisy = told(features, Fold("toy", "ID", label_noise=ratio))
        assert list(noisy) == list(clean)
        flipped.append({(name, label) for name, label in noisy.items() if label != clean[name]})
        assert len(flipped[-1]) == int(ratio * len(clean) + 0.5)
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(flipped))


def test_labels_of_a_fraction_are_flipped_in_the_exact_share_of_it(features):
    clean = told(features, Fold("toy", "ID", fraction=0.5))
    noisy = told(features, Fold("toy", "ID", fraction=0.5, label_noise=0.2))
    assert sum(noisy[name] != label for name, label in clean.items()) == int(0.2 * len(clean) + 0.5)


def test_test_samples_and_their_labels_stay_as_they_are(features):
    fold = Fold("toy", "ID", fraction=0.1, label_noise=0.5)
    expected = features.select(split="test")
    np.testing.assert_array_equal(samples_to_test(features, fold).ids, expected.ids)
    np.testing.assert_array_equal(samples_to_test(features, fold).labels, expected.labels)


@pytest.mark.parametrize("settings", [{"fraction": 0.0}, {"fraction": 1.5}, {"label_noise": -0.1}, {"label_noise": 2}])
def test_shares_out_of_range_are_refused(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(InvalidInputError, match=f"{name}.*got {value}; 10 % is 0.1"):
        Fold("toy", "ID", **settings)


def test_the_heads_learn_from_what_was_drawn(features, store):
    fold = Fold("toy", "ID", fraction=0.5, label_noise=0.2, seed=2)
    [evaluation] = fit_requests([Request(features, fold, {"LP": LinearProbe(epochs=3)}, "LP")], store=store, jobs=1)
    train = samples_to_train(features, fold)
    alone = LinearProbe(epochs=3).fit(train.values, train.labels)
    np.testing.assert_array_equal(evaluation.predictions, alone.predict(features.select(split="test").values))


def test_all_samples_with_clean_labels_keep_the_key_that_knows_of_no_draw(features, store):
    """Results stored before folds could draw samples are found again, whatever the seed; others have keys of theirs."""
    head = NMTune(epochs=1)
    key = {"arrow": "fit", "version": FIT_VERSION, "data": features.protocol_fingerprint, "draw": {},
           "train_domains": None, "test_domains": None,
           "candidates": [{"head": "NMTune", "parameters": head.get_params()}]}  # fmt: skip
    for fold in (in_domain_fold("toy"), Fold("toy", "ID", fraction=1, label_noise=0, seed=5)):
        fit_requests([Request(features, fold, {"NMTune": head}, "NMTune")], store=store, jobs=1)
        assert [info.digest for info in store.entries(FIT_KIND)] == [store.find(FIT_KIND, key).digest]
    drawn = {"fraction": 0.5, "label_noise": 0.0, "seed": 5}
    half = Fold("toy", "ID", fraction=0.5, seed=5)
    fit_requests([Request(features, half, {"NMTune": head}, "NMTune")], store=store, jobs=1)
    assert store.find(FIT_KIND, key | {"draw": drawn}) is not None
    assert len(list(store.entries(FIT_KIND))) == 2
