"""A study of seconds: its tables against what the parts give one by one, whatever the number of processes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score, f1_score

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import extract_features, leave_one_domain_out, samples_to_train
from nml_kit.heads import LinearProbe
from nml_kit.inference import paired_differences
from nml_kit.noise import inject_label_noise
from nml_kit.spectrum import singular_values
from nml_kit.store import Store
from nml_kit.study import (
    RESULT_COLUMNS,
    Origin,
    Study,
    downstream_tasks,
    label_noise,
    make_head,
    pretrained_backbone,
    pretraining_task,
    run_study,
    spectrum_bands,
    summary_table,
)
from nml_kit.tuning import Tuning
from tests.conftest import make_task


@pytest.fixture(scope="module")
def study(profile, home) -> Study:
    return run_study(profile, store=home, jobs=2, progress=False)


def test_the_rows_are_complete(study):
    rows = study.rows
    assert tuple(rows.columns) == RESULT_COLUMNS
    networks = {(0.0, 0), (0.0, 1), (0.3, 0), (0.3, 1)}
    assert set(rows.dropna()[["ratio", "seed"]].itertuples(index=False, name=None)) == networks
    # (4 trained networks + 1 random one) × (1 ID fold + 2 OOD folds) × 3 methods × 4 metrics
    assert len(rows) == 5 * 3 * 3 * 4
    assert not rows.drop(columns="ratio").isna().any(axis=None)
    assert not rows.drop(columns="value").duplicated().any()


def test_a_row_is_what_the_parts_give_one_by_one(study, profile, home):
    backbone = pretrained_backbone(profile, pretraining_task(profile), Origin(0.3, 1), store=home, progress=False)
    features = extract_features(downstream_tasks(profile)["digits"], backbone, store=home, progress=False)
    train, test = features.select(split="train"), features.select(split="test")
    predicted = LinearProbe(epochs=2, random_state=1).fit(train.values, train.labels).predict(test.values)
    shares = np.linalg.svd(test.values.astype(float), compute_uv=False)
    shares /= shares.sum()
    expected = {
        "accuracy": accuracy_score(test.labels, predicted),
        "macro_f1": f1_score(test.labels, predicted, average="macro"),
        "sve": -(shares * np.log(shares)).sum(),
        "lsvr": -np.log(shares[0]),
    }
    found = study.rows.query("ratio == 0.3 and seed == 1 and task == 'digits' and method == 'LP'")
    assert found.set_index("metric")["value"].to_dict() == pytest.approx(expected, rel=1e-9)


def test_fractions_and_noisy_labels_are_the_same_samples_for_every_method_and_ratio(profile, home, study):
    drawn = run_study(profile, methods=("LP",), fractions=(0.5, 1.0), label_noise=(0.0, 0.25), store=home, jobs=1,
                      progress=False)  # fmt: skip
    found = drawn.rows.groupby(["fraction", "label_noise"]).size()
    assert found.index.tolist() == [(0.5, 0.0), (0.5, 0.25), (1.0, 0.0), (1.0, 0.25)]
    assert found.nunique() == 1
    whole = drawn.rows.query("fraction == 1 and label_noise == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(whole, study.rows.query("method == 'LP'").reset_index(drop=True))
    told, source, tasks = {}, pretraining_task(profile), downstream_tasks(profile)
    for context, fit in drawn.runs:
        fold, origin = fit.fold, Origin(context["ratio"], context["seed"])
        backbone = pretrained_backbone(profile, source, origin, store=home, progress=False)
        features = extract_features(tasks[fold.task], backbone, store=home, progress=False)
        train = samples_to_train(features, fold)
        key = (fold.task, fold.test_domains, fold.fraction, fold.label_noise, origin.seed)
        told.setdefault(key, set()).add((tuple(train.ids), tuple(train.labels)))
    assert {len(parts) for parts in told.values()} == {1}
    changes = paired_differences(drawn.samples, "fraction", 1.0, ["protocol", "label_noise"])
    assert changes["label_noise"].tolist() == [0.0, 0.25, 0.0, 0.25]


def test_out_of_domain_rows_name_their_domains(study):
    found = study.rows.query("protocol == 'OOD'")[["train_domain", "test_domain"]].drop_duplicates()
    folds = leave_one_domain_out("icons", ["colour", "duotone", "filled", "outline"], ("outline", "filled"))
    expected = {("+".join(fold.train_domains), fold.test_domains[0]) for fold in folds}
    assert set(found.itertuples(index=False, name=None)) == expected


def test_one_process_gives_the_same_bytes_as_two_and_a_second_run_makes_nothing(study, profile, home, tmp_path):
    alone = Store(tmp_path / "alone")
    pd.testing.assert_frame_equal(run_study(profile, store=alone, jobs=1, progress=False).rows, study.rows)
    before = {info.path: info.path.stat().st_mtime_ns for info in home.entries()}
    pd.testing.assert_frame_equal(run_study(profile, store=home, progress=False).rows, study.rows)
    assert {info.path: info.path.stat().st_mtime_ns for info in home.entries()} == before


def test_a_part_that_was_lost_is_made_again_with_the_same_result(study, profile, home):
    lost = next(info for info in home.entries("fit") if "NMTune" in (info.path / "manifest.json").read_text())
    for path in lost.path.iterdir():
        path.unlink()
    lost.path.rmdir()
    pd.testing.assert_frame_equal(run_study(profile, store=home, progress=False).rows, study.rows)


class Nearest(ClassifierMixin, BaseEstimator):
    """A head of one's own: the class of the nearest of a few train samples."""

    def __init__(self, few: int = 20, random_state: int | None = None) -> None:
        self.few = few
        self.random_state = random_state

    def fit(self, X, y):
        rows = np.random.default_rng(self.random_state).permutation(len(y))[: self.few]
        self.classes_, self.rows_, self.labels_ = np.unique(y), np.asarray(X)[rows], np.asarray(y)[rows]
        return self

    def predict(self, X):
        return self.labels_[((np.asarray(X)[:, None] - self.rows_) ** 2).sum(axis=2).argmin(axis=1)]


def quadrants():
    """A task of two domains, each with train and test samples."""
    task = make_task()
    return replace(task, domains=np.array(["bright", "dark"])[np.arange(len(task)) // 4 % 2])


def test_ratios_seeds_tasks_methods_and_noise_of_ones_own(profile, home, study):
    def inverted(task, ratio, seed):
        train = task.select(split="train")
        return inject_label_noise(train.labels, ratio, num_classes=task.num_classes, seed=1 + seed, ids=train.ids)

    methods = {"LP": "LP", "mine": (Nearest(), {"few": [5, 20]}), "tuned": Tuning(epochs=1)}
    asked = {"ratios": [0.0, 0.15], "seeds": [3], "tasks": ["digits", quadrants()], "methods": methods}
    mine = run_study(profile, **asked, noise=inverted, store=home, jobs=2, progress=False)
    assert set(mine.rows["noise"]) == {"inverted"}
    assert mine.rows["ratio"].dropna().unique().tolist() == [0.0, 0.15]
    folds = mine.rows.groupby(["task", "protocol", "test_domain"]).size().index.tolist()
    assert folds == [("digits", "ID", "all"), ("quadrants", "ID", "all"), ("quadrants", "OOD", "bright"),
                     ("quadrants", "OOD", "dark")]  # fmt: skip
    assert set(mine.selections["method"]) == {"mine"}
    assert mine.selections.groupby(["ratio", "task", "test_domain"], dropna=False).size().tolist() == [2] * 12
    assert mine.rows.loc[mine.rows["ratio"].isna(), "method"].unique().tolist() == ["LP", "mine"]
    before = {info.path for info in home.entries()}
    again = run_study(profile, **asked, noise=inverted, store=home, jobs=1, progress=False)
    pd.testing.assert_frame_equal(again.rows, mine.rows)
    assert {info.path for info in home.entries()} == before


def test_kinds_of_noise_share_the_clean_networks(profile, home, study):
    chosen = {"ratios": [0.0, 0.3], "seeds": [0], "tasks": ["digits"], "methods": ["LP"]}
    kinds = {kind: run_study(profile, noise=kind, **chosen, store=home, progress=False).rows
             for kind in ("uniform", "asymmetric", "confusion")}  # fmt: skip
    names = pd.concat(kinds).groupby(["ratio", "noise"])["backbone"].unique().map(tuple)
    assert names.xs(0.0, level="ratio").nunique() == 1
    assert names.xs(0.3, level="ratio").nunique() == 3
    own = study.rows.query("seed == 0 and task == 'digits' and method == 'LP'").reset_index(drop=True)
    pd.testing.assert_frame_equal(kinds["uniform"], own)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"ratios": [0, 30]}, "expected a fraction from 0 to 1"),
        ({"ratios": ["a few", 0.1]}, "valid number"),
        ({"seeds": []}, "at least 1 item"),
        ({"noise": "unifrom"}, "'uniform', 'asymmetric' or 'confusion'"),
        ({"noise": "uniform", "objective": "contrastive"}, "no `noise` with contrastive"),
        ({"noise": lambda task, ratio, seed: ratio}, "to return a LabelNoise of the 72 train samples"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["digits", "digits"]}, "different names .* got 'digits'"),
        ({"tasks": ["emoji-text"]}, "tasks of images .* got 'emoji-text'"),
        ({"tasks": ["digitz"]}, "did you mean 'digits'"),
        ({"tasks": [make_task()]}, "expected test samples of bright, got none"),
        ({"methods": {"mine": Nearest}}, "pass an instance"),
        ({"fractions": [10]}, "10 % is 0.1"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(profile, store, asked, message):
    with pytest.raises((InvalidInputError, UnknownNameError), match=message):
        run_study(profile, **asked, store=store, jobs=1, progress=False)
    assert not list(store.entries())


def test_noise_of_one_seed_is_nested_in_the_ratio(profile):
    task = pretraining_task(profile)
    low, high = (label_noise(profile, task, ratio, seed=0) for ratio in (0.1, 0.3))
    assert (high.noisy[low.mask] == low.noisy[low.mask]).all()
    assert high.mask.sum() == int(0.3 * len(high.clean) + 0.5)


def test_summary_is_the_mean_over_tasks_and_seeds(study):
    summary = summary_table(study).set_index(["ratio", "method"])
    samples = study.samples.query("ratio == 0.3 and method == 'NMTune' and protocol == 'ID'")
    assert summary.loc[(0.3, "NMTune"), "ID accuracy"] == pytest.approx(samples["correct"].mean())
    rows = study.rows.query("ratio == 0.3 and method == 'NMTune' and protocol == 'OOD' and metric == 'sve'")
    assert summary.loc[(0.3, "NMTune"), "OOD sve"] == pytest.approx(rows["value"].mean())
    assert (summary["ID low"] <= summary["ID accuracy"]).all()
    assert (summary["ID accuracy"] <= summary["ID high"]).all()


def test_spectrum_bands_hold_the_smallest_and_the_largest_seed(study, profile, home):
    bands = spectrum_bands(study.spectra, task="digits", protocol="ID", method="LP")
    shares = []
    for seed in (0, 1):
        origin = Origin(0.0, seed)
        backbone = pretrained_backbone(profile, pretraining_task(profile), origin, store=home, progress=False)
        features = extract_features(downstream_tasks(profile)["digits"], backbone, store=home, progress=False)
        values = singular_values(features.select(split="test").values)
        shares.append(values / values.sum())
    clean = bands[bands["ratio"] == 0.0].sort_values("index")
    np.testing.assert_allclose(clean["share"], np.mean(shares, axis=0), rtol=1e-9)
    np.testing.assert_allclose(clean["low"], np.min(shares, axis=0), rtol=1e-9)
    np.testing.assert_allclose(clean["high"], np.max(shares, axis=0), rtol=1e-9)


def test_errors_name_what_is_wrong(study, profile):
    with pytest.raises(UnknownNameError, match="Unknown method 'NMTunes': did you mean 'NMTune'"):
        make_head("NMTunes", profile, 0)
    with pytest.raises(InvalidInputError, match=r"Expected spectra of .*'fashion'.*there are none"):
        spectrum_bands(study.spectra, task="fashion", protocol="ID", method="LP")
