import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import f1_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import Features, Fold, in_domain_fold, leave_one_domain_out
from nml_kit.heads import LinearProbe, NMTune
from nml_kit.store import Store
from nml_kit.study import RESULT_COLUMNS, evaluate_fold, result_rows, sample_scores, write_results
from nml_kit.study.evaluate import head_settings, settings_hash

CONTEXT = {"experiment": "e", "profile": "p", "backbone": "b", "ratio": 0.1, "objective": "supervised", "seed": 0}


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
    [evaluation] = evaluate_fold(features, in_domain_fold("toy"), {"LP": LinearProbe(random_state=0)}, store=store)
    test = features.select(split="test")
    np.testing.assert_array_equal(evaluation.ids, test.ids)
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
    [evaluation] = evaluate_fold(features, folds[2], {"LP": LinearProbe(random_state=0)}, store=store)
    assert set(evaluation.ids) == set(features.select(split="test", domains=("c",)).ids)
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
        evaluate_fold(features, fold, {"LP": LinearProbe()}, store=store)


def test_test_labels_take_no_part_in_fitting(features, store):
    import dataclasses

    labels = features.labels.copy()
    test = features.splits == "test"
    labels[test] = np.random.default_rng(1).permutation(labels[test])
    permuted = dataclasses.replace(features, labels=labels)
    first, second = (
        evaluate_fold(f, in_domain_fold("toy"), {"LP": LinearProbe(random_state=0)}, store=store)[0]
        for f in (features, permuted)
    )
    np.testing.assert_array_equal(first.predictions, second.predictions)


def test_spectrum_of_nmtune_is_that_of_its_representation(features, store):
    head = NMTune(epochs=3, random_state=0)
    [evaluation] = evaluate_fold(features, in_domain_fold("toy"), {"NMTune": head}, store=store)
    train, test = features.select(split="train"), features.select(split="test")
    represented = head.fit(train.values, train.labels).transform(test.values)
    expected = np.linalg.svd(np.asarray(represented, dtype=float), compute_uv=False)
    np.testing.assert_allclose(evaluation.singular_values, expected, rtol=1e-6)


def test_rows_are_tidy_and_complete(features, store):
    [evaluation] = evaluate_fold(features, in_domain_fold("toy"), {"LP": LinearProbe(epochs=1)}, store=store)
    rows = result_rows(evaluation, **CONTEXT)
    assert [row["metric"] for row in rows] == ["accuracy", "macro_f1", "sve", "lsvr"]
    assert all(tuple(row) == RESULT_COLUMNS for row in rows)
    assert rows[0]["n"] == 48
    with pytest.raises(InvalidInputError, match="but seed is missing"):
        result_rows(evaluation, **{k: v for k, v in CONTEXT.items() if k != "seed"})


def test_rows_say_what_share_of_the_samples_and_labels_the_fold_took(features, store):
    fold = Fold("toy", "ID", fraction=0.5, label_noise=0.25)
    [evaluation] = evaluate_fold(features, fold, {"LP": LinearProbe(epochs=1)}, store=store)
    for row in result_rows(evaluation, **CONTEXT):
        assert (row["fraction"], row["label_noise"]) == (0.5, 0.25)


@pytest.mark.filterwarnings("error")
def test_one_sample_of_each_class_is_enough_and_not_warned_of(features, store):
    fold = Fold("toy", "ID", fraction=0.01)
    heads = {"LP": LinearProbe(epochs=1), "ridge": RidgeClassifier()}
    assert [len(found.predictions) for found in evaluate_fold(features, fold, heads, store=store)] == [48, 48]


def a_pipeline():
    steps = [("scale", StandardScaler()), ("probe", LogisticRegression(C=np.float64(0.5)))]
    return Pipeline(steps)


def test_a_pipeline_is_evaluated_and_its_spectrum_is_what_its_classifier_reads(features, store):
    [evaluation] = evaluate_fold(features, in_domain_fold("toy"), {"scaled": a_pipeline()}, store=store)
    train, test = features.select(split="train"), features.select(split="test")
    scale = StandardScaler().fit(train.values)
    alone = LogisticRegression(C=0.5).fit(scale.transform(train.values), train.labels)
    np.testing.assert_array_equal(evaluation.predictions, alone.predict(scale.transform(test.values)))
    expected = np.linalg.svd(scale.transform(test.values).astype(float), compute_uv=False)
    np.testing.assert_allclose(evaluation.singular_values, expected, rtol=1e-5)


def test_the_settings_of_a_pipeline_hash_to_the_same_in_another_process():
    code = "from tests.study.test_evaluate import a_pipeline; from nml_kit.study.evaluate import settings_hash as h; "
    there = subprocess.run([sys.executable, "-c", code + "print(h(a_pipeline()))"], capture_output=True, text=True,
                           check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert there.stdout.strip() == settings_hash(a_pipeline())


@pytest.mark.parametrize(
    "changed", [{"probe__C": 2.0}, {"scale__with_mean": False}, {"scale": "passthrough"}, {"verbose": True}]
)
def test_every_parameter_inside_a_pipeline_counts(changed):
    assert settings_hash(a_pipeline().set_params(**changed)) != settings_hash(a_pipeline())


def test_a_fitted_pipeline_has_the_settings_of_an_unfitted_one(features):
    train = features.select(split="train")
    assert settings_hash(a_pipeline().fit(train.values, train.labels)) == settings_hash(a_pipeline())


def test_settings_without_a_stable_name_are_refused():
    named = FunctionTransformer(np.log1p)
    assert head_settings(named)["parameters"]["func"].endswith("log1p")
    with pytest.raises(InvalidInputError, match="to fingerprint"):
        settings_hash(FunctionTransformer(lambda values: values))


def test_sample_scores_say_who_was_right(features, store):
    [evaluation] = evaluate_fold(features, in_domain_fold("toy"), {"LP": LinearProbe()}, store=store)
    table = sample_scores(evaluation, ratio=0.1, seed=3)
    assert table["correct"].mean() == evaluation.metrics()["accuracy"]
    assert ((table["label"] == table["prediction"]) == table["correct"]).all()
    labels = dict(zip(features.ids, features.labels, strict=True))
    assert table["label"].tolist() == [labels[name] for name in table["sample"]]
    assert table["sample"].tolist() == evaluation.ids.tolist()


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
    together = evaluate_fold(toy, in_domain_fold("toy"), heads, store=Store(tmp_path / "together"))
    for evaluation, (name, head) in zip(together, heads.items(), strict=True):
        [alone] = evaluate_fold(toy, in_domain_fold("toy"), {name: head}, store=Store(tmp_path / "alone"))
        np.testing.assert_array_equal(evaluation.singular_values, alone.singular_values)
