"""Real models on tasks: folds and samples as asked for, numbers against their parts, verdicts in every direction."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from nml_kit.audit import head_differences, judge_models, practical_tasks, run_practical
from nml_kit.audit.report import BAG_OF_WORDS, AuditSettings, bag_of_words
from nml_kit.backbones import load_backbone
from nml_kit.data import load_task
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import extract_features
from nml_kit.inference import overall_verdict
from nml_kit.spectrum import singular_value_entropy
from nml_kit.store import Store
from nml_kit.study import (
    RESULT_COLUMNS,
    Source,
    Study,
    fit_sources,
    load_profile,
    load_results,
    reference_dir,
    write_results,
)

SMOKE = load_profile("smoke")
NAMES = {"emoji-text": ["name"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Store, list, Study]:
    store = Store(tmp_path_factory.mktemp("store"))
    tasks = practical_tasks(SMOKE, ["emoji-text"], {"emoji-text": ["keywords", "github"]}, NAMES)
    return store, tasks, run_practical(SMOKE, [BAG_OF_WORDS], tasks, epochs=2, store=store, jobs=1, progress=False)


def test_only_samples_of_the_folds_are_kept_and_train_samples_cut():
    ((task, folds),) = practical_tasks(SMOKE, ["emoji-text"], {"emoji-text": ["keywords", "github"]}, NAMES)
    assert [(fold.protocol, fold.train_domains, fold.test_domains) for fold in folds] == [
        ("ID", ("name",), ("name",)),
        ("OOD", ("name",), ("keywords", "github")),
    ]
    train, whole = task.select(split="train"), load_task("emoji-text")
    assert set(train.domains) == {"name"}
    assert (np.bincount(train.labels) == SMOKE.downstream.train_per_class).all()
    kept = task.ids[task.splits == "test"]
    expected = np.isin(whole.domains, ["name", "keywords", "github"]) & (whole.splits == "test")
    assert sorted(kept) == sorted(whole.ids[expected])


def test_without_sources_domains_are_pooled_and_left_out_in_turn():
    pooled, styles = practical_tasks(SMOKE, ["icons-badges"], {"icons": []})
    assert [fold.protocol for fold in pooled.folds] == ["ID"]
    assert [fold.protocol for fold in styles.folds] == ["OOD"] * 4
    assert all(not set(fold.train_domains) & set(fold.test_domains) for fold in styles.folds)
    assert {fold.test_domains for fold in styles.folds} == {("colour",), ("duotone",), ("filled",), ("outline",)}


@pytest.mark.parametrize(
    ("ood", "sources"), [({"icons": ["crayon"]}, {}), ({}, {"icons": ["crayon"]}), ({"iconz": []}, {})]
)
def test_unknown_names_are_refused_before_anything_is_extracted(ood, sources):
    with pytest.raises(UnknownNameError, match=r"crayon|iconz"):
        practical_tasks(SMOKE, ["icons"], ood, sources)


def test_sources_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInputError, match="beside the sources filled, got outline, filled"):
        practical_tasks(SMOKE, [], {"icons": ["outline", "filled"]}, {"icons": ["filled"]})
    with pytest.raises(InvalidInputError, match="beside the sources photo, got none"):
        practical_tasks(SMOKE, [], {"fashion": []}, {"fashion": ["photo"]})
    with pytest.raises(UnknownNameError, match="icons"):
        practical_tasks(SMOKE, ["icons"], {}, {"iconz": ["filled"]})


def test_a_bag_of_words_counts_words_whatever_stands_between_them():
    texts = np.array(["Racing_car", "racing car", "car: racing, racing", "→"])
    rows = bag_of_words(texts)
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 0], rtol=1e-6)
    assert rows[0] @ rows[2] == pytest.approx(3 / np.sqrt(2 * 5))  # cosine of (1, 1) and (1, 2)


def test_rows_are_those_of_the_heads_that_were_chosen(run):
    store, ((task, folds),), found = run
    assert tuple(found.rows.columns) == RESULT_COLUMNS
    assert len(found.rows) == len(folds) * 3 * 4 * len(SMOKE.seeds)
    right = found.samples.groupby(["protocol", "method", "seed"])["correct"].mean()
    rows = found.rows.query("metric == 'accuracy'").set_index(["protocol", "method", "seed"])["value"]
    pd.testing.assert_series_equal(right, rows.sort_index(), check_names=False)
    features = extract_features(task, _bag(), store=store, progress=False)
    source = Source({"seed": 0, "ratio": np.nan}, {task.name: features})
    settings = AuditSettings(SMOKE.seeds, 2)
    asked = settings.profile, [source], lambda seed: folds[1:], settings.candidates
    fresh = fit_sources(*asked, store=Store(store.root / "fresh"), jobs=1)
    assert fresh.runs[2][1].metrics()["accuracy"] == rows["OOD", "NMTune", 0]
    tested = features.values[(features.splits == "test") & (features.domains == "name")]
    sve = found.rows.query("metric == 'sve' and protocol == 'ID' and method == 'LP'")["value"].iloc[0]
    singular = np.linalg.svd(tested.astype(float), compute_uv=False)
    assert sve == pytest.approx(singular_value_entropy(singular), rel=1e-5)


def _bag():
    return load_backbone(bag_of_words, fingerprint_of_weights="hashed words, 1024")


def test_samples_tell_their_domain(run):
    samples = run[2].samples
    assert (samples["sample"].str.split("/").str[1] == samples["domain"]).all()
    by_domain = head_differences(samples, ["backbone", "domain", "protocol"])
    assert set(by_domain["domain"]) == {"name", "keywords", "github"}


def test_results_of_a_study_are_not_mixed_with_those_of_real_models(run, tmp_path):
    few = [("task", "==", "digits"), ("seed", "==", 0)]
    paths = {name: reference_dir() / f"{name}.parquet" for name in ("rows", "samples", "spectra")}
    write_results(tmp_path, **{name: pd.read_parquet(path, filters=few) for name, path in paths.items()})
    expected = load_results(tmp_path).rows
    write_results(tmp_path / "19", rows=run[2].rows.assign(profile="small"))
    pd.testing.assert_frame_equal(load_results(tmp_path).rows, expected)


def planted(gains: dict[str, float]) -> SimpleNamespace:
    """Five seeds of two models whose NMTune is right more often than LP and MLP by `gains`."""
    generator = np.random.default_rng(0)
    samples, rows = [], []
    for backbone, gain in gains.items():
        for protocol in ("ID", "OOD"):
            for seed in range(5):
                noise = generator.random(400)
                for method, chance in {"LP": 0.5, "MLP": 0.5, "NMTune": 0.5 + gain}.items():
                    about = {"backbone": backbone, "task": "t", "protocol": protocol, "method": method, "seed": seed}
                    samples.append(pd.DataFrame({**about, "sample": np.arange(400), "correct": noise < chance}))
                    spectral = {"sve": generator.normal(4, 0.01), "lsvr": generator.normal(2, 0.01)}
                    rows += [
                        {**about, "test_domain": "d", "metric": m, "value": v, "n": 400} for m, v in spectral.items()
                    ]
    return SimpleNamespace(rows=pd.DataFrame(rows), samples=pd.concat(samples, ignore_index=True))


def test_each_model_is_judged_by_itself():
    verdicts = judge_models(planted({"good": 0.2, "bad": -0.2}))
    assert set(verdicts["claim"]) == {"C5"}
    accuracy = verdicts.query("metric == 'accuracy' and task == 't' and contrast.str.startswith('NMTune')")
    assert set(accuracy.query("backbone == 'good'")["verdict"]) == {"supported"}
    assert set(accuracy.query("backbone == 'bad'")["verdict"]) == {"contradicted"}


@pytest.mark.parametrize(
    ("supported", "contradicted", "inconclusive", "verdict"),
    [(2, 0, 2, "supported"), (1, 0, 2, "inconclusive"), (3, 1, 0, "inconclusive"), (0, 2, 2, "contradicted"),
     (1, 3, 0, "inconclusive"), (0, 0, 3, "inconclusive"), (0, 0, 0, "inconclusive")],
)  # fmt: skip
def test_a_claim_as_a_whole(supported, contradicted, inconclusive, verdict):
    every = ["supported"] * supported + ["contradicted"] * contradicted + ["inconclusive"] * inconclusive
    assert overall_verdict(every) == verdict
