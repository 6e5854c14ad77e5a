"""The choice of settings: made on validation parts of the train samples, and blind to everything of the test split."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from nml_kit.errors import InvalidInputError
from nml_kit.features import Features, Fold, in_domain_fold, samples_to_train
from nml_kit.heads import LinearProbe
from nml_kit.study import expanded, select_head, selection_rows
from nml_kit.study.evaluate import settings_hash
from nml_kit.study.selection import is_selected, validation_rows

NEIGHBOURS = {"kNN": (KNeighborsClassifier(), {"n_neighbors": [1, 5, 25]})}
RATES = {"LP": (LinearProbe(epochs=3), {"learning_rate": [1e-6, 1e-2]})}
FOLDS = [
    in_domain_fold("toy"),
    Fold("toy", "OOD", ("a", "b"), ("c",)),
    Fold("toy", "ID", fraction=0.5, label_noise=0.2),
]


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    values = generator.normal(size=(300, 6)).astype(np.float32)
    values[np.arange(300), labels] += 1.0
    domains = np.array(["a", "b", "c"])[(np.arange(300) // 3) % 3]
    splits = np.where(np.arange(300) % 5 == 0, "test", "train")
    ids = np.array([f"s{i}" for i in range(300)])
    return Features("toy", values, ids, labels, ("x", "y", "z"), domains, splits, "fingerprint")


def with_other_test_split(features: Features) -> Features:
    """Test labels permuted and test features drawn anew; the train samples as they are."""
    generator = np.random.default_rng(1)
    test = features.splits == "test"
    labels, values = features.labels.copy(), features.values.copy()
    labels[test] = generator.permutation(labels[test])
    values[test] = generator.normal(size=values[test].shape) * 100
    return replace(features, labels=labels, values=values, fingerprint="other test images")


@pytest.mark.parametrize("fold", FOLDS, ids=["ID", "OOD", "drawn"])
@pytest.mark.parametrize("candidates", [NEIGHBOURS, RATES], ids=["kNN", "LP"])
def test_neither_labels_nor_features_of_the_test_split_influence_the_choice(features, store, fold, candidates):
    first, second = (
        select_head(given, fold, candidates, method="m", seed=0, store=store)
        for given in (features, with_other_test_split(features))
    )
    assert first.chosen == second.chosen
    np.testing.assert_array_equal(first.validation_accuracy, second.validation_accuracy)
    assert first.evaluation.settings_hash == second.evaluation.settings_hash
    assert first.evaluation.metrics()["accuracy"] != second.evaluation.metrics()["accuracy"]


def test_a_held_out_domain_takes_no_part_in_the_choice(features, store):
    fold = FOLDS[1]
    changed = features.values.copy()
    changed[features.domains == "c"] = 0
    first, second = (
        select_head(given, fold, NEIGHBOURS, method="m", seed=0, store=store)
        for given in (features, replace(features, values=changed, fingerprint="other"))
    )
    np.testing.assert_array_equal(first.validation_accuracy, second.validation_accuracy)


def test_scores_are_those_of_scikit_learn_and_the_winner_learns_from_all_train_samples(features, store):
    selection = select_head(features, in_domain_fold("toy"), NEIGHBOURS, method="kNN", seed=3, store=store)
    train = samples_to_train(features, in_domain_fold("toy"))
    by_id = train.take(np.argsort(train.ids))
    held_out = np.zeros(len(train), dtype=bool)
    held_out[validation_rows(by_id.labels, seed=3)] = True
    rest, part = by_id.take(~held_out), by_id.take(held_out)
    expected = [
        accuracy_score(part.labels, KNeighborsClassifier(n).fit(rest.values, rest.labels).predict(part.values))
        for n in (1, 5, 25)
    ]
    np.testing.assert_array_equal(selection.validation_accuracy, expected)
    best = KNeighborsClassifier((1, 5, 25)[int(np.argmax(expected))])
    assert selection.evaluation.settings_hash == settings_hash(best)
    test = features.select(split="test")
    predicted = best.fit(train.values, train.labels).predict(test.values)
    np.testing.assert_array_equal(selection.evaluation.predictions, predicted)


def test_the_part_is_the_same_for_another_order_of_files(features, store):
    order = np.random.default_rng(5).permutation(len(features))
    other = replace(features.take(order), fingerprint="shuffled")
    first, second = (
        select_head(given, in_domain_fold("toy"), NEIGHBOURS, method="m", seed=0, store=store)
        for given in (features, other)
    )
    np.testing.assert_array_equal(first.validation_accuracy, second.validation_accuracy)


def test_of_equals_the_first_is_chosen(features, store):
    same = {"first": DummyClassifier(constant=0), "second": DummyClassifier(constant=1)}
    for names in (["first", "second"], ["second", "first"]):
        candidates = {name: same[name] for name in names}
        selection = select_head(features, in_domain_fold("toy"), candidates, method="m", seed=0, store=store)
        assert selection.candidates[selection.chosen] == names[0]


def test_parts_hold_every_class_and_leave_every_class():
    labels = np.repeat(np.arange(4), [50, 20, 5, 5])
    part = validation_rows(labels, seed=0)
    assert np.bincount(labels[part]).tolist() == [10, 4, 1, 1]
    few = np.repeat(np.arange(5), [4, 4, 2, 2, 1])
    part = validation_rows(few, seed=0)
    left = np.bincount(np.delete(few, part), minlength=5)
    assert len(part) == 4
    assert left.min() == 1
    assert 4 not in few[part]
    with pytest.raises(InvalidInputError, match=r"at least two train samples .* got 3 samples of 3 classes"):
        validation_rows(np.arange(3), seed=0)


def test_what_was_chosen_is_kept_and_told(features, store):
    fold, asked = FOLDS[2], {"method": "kNN", "seed": 0, "store": store}
    assert not is_selected(features, fold, NEIGHBOURS, seed=0, store=store)
    first = select_head(features, fold, NEIGHBOURS, **asked)
    assert is_selected(features, fold, NEIGHBOURS, seed=0, store=store)
    assert not is_selected(features, fold, NEIGHBOURS, seed=1, store=store)
    table = selection_rows(select_head(features, fold, NEIGHBOURS, **asked), ratio=0.1, seed=0)
    fold_columns = ["task", "protocol", "train_domain", "test_domain", "fraction", "label_noise"]
    choice = ["method", "candidate", "validation_accuracy", "chosen"]
    assert table.columns.tolist() == ["ratio", "seed", *fold_columns, *choice]
    assert table["candidate"].tolist() == [f"kNN n_neighbors={n}" for n in (1, 5, 25)]
    assert table["chosen"].sum() == 1
    assert table.loc[table["chosen"], "validation_accuracy"].item() == first.validation_accuracy.max()


def test_no_candidate_is_refused():
    with pytest.raises(InvalidInputError, match="at least one candidate"):
        expanded({})
