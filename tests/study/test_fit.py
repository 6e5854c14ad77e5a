"""Fits against scikit-learn and numpy: what is learned from, what is chosen, what is told of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import Features, Fold, in_domain_fold, leave_one_domain_out, samples_to_train
from nml_kit.heads import LinearProbe, NMTune
from nml_kit.store import Store
from nml_kit.study import FIT_KIND, RESULT_COLUMNS, Fit, Request, fit_requests, write_results
from nml_kit.study.fit import validation_rows
from nml_kit.study.methods import expanded, settings_hash

CONTEXT = {"experiment": "e", "profile": "p", "recipe": "r", "noise": "uniform", "backbone": "b", "ratio": 0.1,
           "objective": "supervised", "seed": 0}  # fmt: skip


KNN = expanded("kNN", KNeighborsClassifier(), {"n_neighbors": [1, 5, 25]}, seed=0)
RATES = expanded("LP", LinearProbe(epochs=3), {"learning_rate": [1e-6, 1e-2]}, seed=0)
FOLDS = [
    in_domain_fold("toy"),
    Fold("toy", "OOD", ("a", "b"), ("c",)),
    Fold("toy", "ID", fraction=0.5, label_noise=0.2),
]


def fits(features: Features, fold: Fold, heads: dict, store: Store) -> list[Fit]:
    """One fit for each head."""
    requests = [Request(features, fold, {name: head}, name) for name, head in heads.items()]
    return fit_requests(requests, store=store, jobs=1, progress=False)


def chosen(features: Features, fold: Fold, candidates: dict, store: Store, seed: int = 0) -> Fit:
    """The fit of the best candidate."""
    return fit_requests([Request(features, fold, candidates, "m", seed)], store=store, jobs=1, progress=False)[0]


@pytest.fixture
def features():
    generator = np.random.default_rng(0)
    labels = np.arange(240) % 3
    values = generator.normal(size=(240, 6)).astype(np.float32)
    values[np.arange(240), labels] += 2.5
    domains = np.array(["a", "b", "c"])[(np.arange(240) // 3) % 3]
    values[domains == "c"] += generator.normal(size=6) * 1.5
    splits = np.where(np.arange(240) % 5 == 0, "test", "train")
    ids = np.array([f"s{i}" for i in range(240)])
    return Features("toy", values, ids, labels, ("x", "y", "z"), domains, splits, "fingerprint")


def test_in_domain_metrics_equal_sklearn_and_numpy(features, store):
    [evaluation] = fits(features, in_domain_fold("toy"), {"LP": LinearProbe(random_state=0)}, store)
    test = features.select(split="test")
    np.testing.assert_array_equal(evaluation.test.ids, test.ids)
    metrics = evaluation.metrics()
    assert metrics["accuracy"] == np.mean(evaluation.predictions == test.labels)
    assert metrics["macro_f1"] == pytest.approx(f1_score(test.labels, evaluation.predictions, average="macro"))
    shares = np.linalg.svd(test.values.astype(float), compute_uv=False)
    shares /= shares.sum()
    assert metrics["sve"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert metrics["lsvr"] == pytest.approx(-np.log(shares[0]))
    train = features.select(split="train")
    reference = LogisticRegression().fit(train.values, train.labels).score(test.values, test.labels)
    assert metrics["accuracy"] == pytest.approx(reference, abs=0.1)


def test_leave_one_domain_out_trains_on_the_others_and_tests_on_it(features, store):
    folds = leave_one_domain_out("toy", features.domains.tolist())
    assert [(fold.train_domains, fold.test_domains) for fold in folds] == [
        (("b", "c"), ("a",)), (("a", "c"), ("b",)), (("a", "b"), ("c",))]  # fmt: skip
    [evaluation] = fits(features, folds[2], {"LP": LinearProbe(random_state=0)}, store)
    assert set(evaluation.test.ids) == set(features.select(split="test", domains=("c",)).ids)
    train = features.select(split="train", domains=("a", "b"))
    alone = LinearProbe(random_state=0).fit(train.values, train.labels)
    expected = alone.predict(features.select(split="test", domains=("c",)).values)
    np.testing.assert_array_equal(evaluation.predictions, expected)


def test_one_domain_cannot_be_left_out():
    with pytest.raises(InvalidInputError, match="at least two domains to leave one out, but got \\['a'\\]"):
        leave_one_domain_out("toy", ["a", "a"])


def test_unknown_held_out_domain_names_the_nearest(features, store):
    (fold,) = leave_one_domain_out("toy", features.domains.tolist(), ["aa"])
    with pytest.raises(UnknownNameError, match="Unknown domain 'aa'"):
        fits(features, fold, {"LP": LinearProbe()}, store)


def test_test_labels_take_no_part_in_fitting(features, store):
    labels = features.labels.copy()
    test = features.splits == "test"
    labels[test] = np.random.default_rng(1).permutation(labels[test])
    permuted = replace(features, labels=labels)
    first, second = (
        fits(f, in_domain_fold("toy"), {"LP": LinearProbe(random_state=0)}, store)[0] for f in (features, permuted)
    )
    np.testing.assert_array_equal(first.predictions, second.predictions)


def test_spectrum_of_nmtune_is_that_of_its_representation(features, store):
    head = NMTune(epochs=3, random_state=0)
    [evaluation] = fits(features, in_domain_fold("toy"), {"NMTune": head}, store)
    train, test = features.select(split="train"), features.select(split="test")
    represented = head.fit(train.values, train.labels).transform(test.values)
    expected = np.linalg.svd(np.asarray(represented, dtype=float), compute_uv=False)
    np.testing.assert_allclose(evaluation.singular_values, expected, rtol=1e-6)


def test_rows_are_tidy_and_complete(features, store):
    [evaluation] = fits(features, in_domain_fold("toy"), {"LP": LinearProbe(epochs=1)}, store)
    rows = evaluation.rows(**CONTEXT)
    assert [row["metric"] for row in rows] == ["accuracy", "macro_f1", "sve", "lsvr"]
    assert all(tuple(row) == RESULT_COLUMNS for row in rows)
    assert rows[0]["n"] == 48
    with pytest.raises(InvalidInputError, match="but seed is missing"):
        evaluation.rows(**{k: v for k, v in CONTEXT.items() if k != "seed"})


def test_rows_say_what_share_of_the_samples_and_labels_the_fold_took(features, store):
    fold = Fold("toy", "ID", fraction=0.5, label_noise=0.25)
    [evaluation] = fits(features, fold, {"LP": LinearProbe(epochs=1)}, store)
    for row in evaluation.rows(**CONTEXT):
        assert (row["fraction"], row["label_noise"]) == (0.5, 0.25)


@pytest.mark.filterwarnings("error")
def test_one_sample_of_each_class_is_enough_and_not_warned_of(features, store):
    fold = Fold("toy", "ID", fraction=0.01)
    heads = {"LP": LinearProbe(epochs=1), "ridge": RidgeClassifier()}
    assert [len(found.predictions) for found in fits(features, fold, heads, store)] == [48, 48]


def a_pipeline():
    steps = [("scale", StandardScaler()), ("probe", LogisticRegression(C=np.float64(0.5)))]
    return Pipeline(steps)


def test_a_pipeline_is_evaluated_and_its_spectrum_is_what_its_classifier_reads(features, store):
    [evaluation] = fits(features, in_domain_fold("toy"), {"scaled": a_pipeline()}, store)
    train, test = features.select(split="train"), features.select(split="test")
    scale = StandardScaler().fit(train.values)
    alone = LogisticRegression(C=0.5).fit(scale.transform(train.values), train.labels)
    np.testing.assert_array_equal(evaluation.predictions, alone.predict(scale.transform(test.values)))
    expected = np.linalg.svd(scale.transform(test.values).astype(float), compute_uv=False)
    np.testing.assert_allclose(evaluation.singular_values, expected, rtol=1e-5)


def test_sample_scores_say_who_was_right(features, store):
    [evaluation] = fits(features, in_domain_fold("toy"), {"LP": LinearProbe()}, store)
    table = evaluation.samples(ratio=0.1, seed=3)
    assert table["correct"].mean() == evaluation.metrics()["accuracy"]
    assert ((table["label"] == table["prediction"]) == table["correct"]).all()
    labels = dict(zip(features.ids, features.labels, strict=True))
    assert table["label"].tolist() == [labels[name] for name in table["sample"]]
    assert table["sample"].tolist() == evaluation.test.ids.tolist()


def test_results_are_written_whole_and_only_where_asked(tmp_path):
    table = pd.DataFrame({"value": [0.5, np.nan]})
    assert write_results("", rows=table) == []
    (path,) = write_results(tmp_path / "run", rows=table)
    pd.testing.assert_frame_equal(pd.read_parquet(path), table)
    assert [p.name for p in path.parent.iterdir()] == ["rows.parquet"]


def test_a_result_has_the_same_bits_in_any_company(tmp_path):
    # Nine heads on few features: trained side by side, some of them would round otherwise than alone.
    values = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    labels, splits = np.arange(200) % 3, np.where(np.arange(200) < 150, "train", "test")
    ids, domains = np.arange(200).astype(str), np.full(200, "a")
    toy = Features("toy", values, ids, labels, ("x", "y", "z"), domains, splits, "fingerprint")
    heads = {f"λ = {weight}": NMTune(weights=weight, epochs=3, random_state=0) for weight in np.arange(9) / 20}
    together = fits(toy, in_domain_fold("toy"), heads, Store(tmp_path / "together"))
    for evaluation, (name, head) in zip(together, heads.items(), strict=True):
        [alone] = fits(toy, in_domain_fold("toy"), {name: head}, Store(tmp_path / "alone"))
        np.testing.assert_array_equal(evaluation.singular_values, alone.singular_values)


def with_other_test_split(features: Features) -> Features:
    """Test labels permuted and test features drawn anew; the train samples as they are."""
    generator = np.random.default_rng(1)
    test = features.splits == "test"
    labels, values = features.labels.copy(), features.values.copy()
    labels[test] = generator.permutation(labels[test])
    values[test] = generator.normal(size=values[test].shape) * 100
    return replace(features, labels=labels, values=values, fingerprint="other test images")


@pytest.mark.parametrize("fold", FOLDS, ids=["ID", "OOD", "drawn"])
@pytest.mark.parametrize("candidates", [KNN, RATES], ids=["kNN", "LP"])
def test_neither_labels_nor_features_of_the_test_split_influence_the_choice(features, store, fold, candidates):
    first, second = (
        chosen(given, fold, candidates, store, seed=0) for given in (features, with_other_test_split(features))
    )
    assert first.chosen == second.chosen
    np.testing.assert_array_equal(first.validation_accuracy, second.validation_accuracy)
    assert first.settings_hash == second.settings_hash
    assert first.metrics()["accuracy"] != second.metrics()["accuracy"]


def test_a_held_out_domain_takes_no_part_in_the_choice(features, store):
    fold = FOLDS[1]
    changed = features.values.copy()
    changed[features.domains == "c"] = 0
    first, second = (
        chosen(given, fold, KNN, store, seed=0)
        for given in (features, replace(features, values=changed, fingerprint="other"))
    )
    np.testing.assert_array_equal(first.validation_accuracy, second.validation_accuracy)


def test_scores_are_those_of_scikit_learn_and_the_winner_learns_from_all_train_samples(features, store):
    selection = chosen(features, in_domain_fold("toy"), KNN, store, seed=3)
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
    assert selection.settings_hash == settings_hash(best)
    test = features.select(split="test")
    predicted = best.fit(train.values, train.labels).predict(test.values)
    np.testing.assert_array_equal(selection.predictions, predicted)


def test_the_part_is_the_same_for_another_order_of_files(features, store):
    order = np.random.default_rng(5).permutation(len(features))
    other = replace(features.take(order), fingerprint="shuffled")
    first, second = (chosen(given, in_domain_fold("toy"), KNN, store, seed=0) for given in (features, other))
    np.testing.assert_array_equal(first.validation_accuracy, second.validation_accuracy)


def test_of_equals_the_first_is_chosen(features, store):
    same = {"first": DummyClassifier(constant=0), "second": DummyClassifier(constant=1)}
    for names in (["first", "second"], ["second", "first"]):
        candidates = {name: same[name] for name in names}
        selection = chosen(features, in_domain_fold("toy"), candidates, store, seed=0)
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
    first, again = (chosen(features, FOLDS[2], KNN, store) for _ in range(2))
    assert len(list(store.entries(FIT_KIND))) == 1
    table = again.selection(ratio=0.1, seed=0)
    fold_columns = ["task", "protocol", "train_domain", "test_domain", "fraction", "label_noise"]
    choice = ["method", "candidate", "validation_accuracy", "chosen"]
    assert table.columns.tolist() == ["ratio", "seed", *fold_columns, *choice]
    assert table["candidate"].tolist() == [f"kNN n_neighbors={n}" for n in (1, 5, 25)]
    assert table["chosen"].sum() == 1
    assert table.loc[table["chosen"], "validation_accuracy"].item() == first.validation_accuracy.max()


def test_one_candidate_is_not_chosen_and_shares_its_fit_whatever_it_is_called(features, store):
    [alone] = fits(features, FOLDS[0], {"LP": LinearProbe(epochs=1)}, store)
    [renamed] = fits(features, FOLDS[0], {"mine": LinearProbe(epochs=1)}, store)
    assert len(list(store.entries(FIT_KIND))) == 1
    assert (alone.method, renamed.method) == ("LP", "mine")
    assert len(renamed.selection(seed=0)) == 0
    np.testing.assert_array_equal(alone.predictions, renamed.predictions)
