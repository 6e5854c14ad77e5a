"""The notebooks that compare heads: NMTune and its parts, noisy labels, other repairs, tuned networks, real models."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeClassifier

from nml_kit import MLPTune, NMTune
from nml_kit.inference import accuracy_intervals, changes_in_words, overall_verdict, paired_differences
from nml_kit.store import Store
from nml_kit.study import RESULT_COLUMNS, load_profile, study_features
from tests.one_notebook import SMALLEST, run_notebook

pytestmark = pytest.mark.timeout(600)
TUNED = ["full", "full + terms", "LoRA", "LoRA + terms"]
FIT = {"epochs": 2, "recipe": "paper"}  # as the profile's
MODEL, BASELINE = "packaged:all-minilm-l6-v2", "bag-of-words"


def test_the_heads_of_the_study_are_compared(ran, study_again):
    run, study = ran("04_nmtune"), study_again()
    run.check_page(figures=4)
    pd.testing.assert_frame_equal(run.table(), study.rows.assign(experiment="04_nmtune"))
    samples = study.samples.query("ratio == ratio")
    intervals = accuracy_intervals(samples)
    best = intervals.loc[intervals.groupby(["task", "protocol", "ratio"])["mean"].idxmax(), "method"].value_counts()
    assert all(f"{method} {count}" in run.titles[0] for method, count in best.items())
    pooled = paired_differences(samples, "method", "LP", ["protocol"])
    assert changes_in_words(pooled, "{protocol}: from LP to {method}, accuracy") in run.said
    tuned = paired_differences(samples.query("method == 'NMTune'"), "ratio", 0.0, ["protocol"])
    assert changes_in_words(tuned, "{protocol} at {ratio}: accuracy") in run.said


def test_each_variant_is_nmtune_with_one_thing_changed(ran, study_again):
    run = ran("04_nmtune")
    methods = {
        "NMTune": NMTune(**FIT),
        "no L_COV": NMTune(weights=(0.01, 0, 0.01), **FIT),
        "λ × 10": NMTune(weights=0.1, **FIT),
        "2 hidden layer(s)": NMTune(hidden=(256, 256), **FIT),
        "other recipe, no term": MLPTune(recipe="reference", epochs=2),
    }
    again = study_again(methods=methods).rows
    keys = ["method", "ratio", "task", "test_domain", "metric"]
    shown = run.table("ablation")
    assert shown["method"].nunique() == 21
    both = again.merge(shown, on=[*keys, "protocol"], suffixes=("", " shown"))
    assert len(both) == len(again)
    assert both["value shown"].tolist() == pytest.approx(both["value"].tolist())


def test_nmtune_by_hand_is_measured_on_the_noisiest_network(ran, smoke_home):
    features = dict(study_features(load_profile(SMALLEST), "digits", store=Store(smoke_home)))
    noisiest = next(values for origin, values in features.items() if origin.ratio == 0.3)
    learn, test = noisiest.splits == "train", noisiest.splits == "test"
    head = NMTune(weights=0.01, epochs=2).fit(noisiest.values[learn], noisiest.labels[learn])
    score = head.score(noisiest.values[test], noisiest.labels[test])
    assert f"NMTune {score:.3f}, MLPTune" in ran("04_nmtune").said


def test_methods_are_compared_on_the_same_flipped_labels(ran, study_again):
    run, study = ran("09_noisy_downstream_labels"), study_again(label_noise=(0.0, 0.2, 0.4))
    run.check_page(figures=2)
    pd.testing.assert_frame_equal(run.table(), study.rows.assign(experiment="09_noisy_downstream_labels"))
    samples = study.samples.query("ratio == ratio")
    against = paired_differences(samples.query("label_noise == 0.4"), "method", "LP", ["protocol", "ratio"])
    words = changes_in_words(against, "{protocol}, {ratio} in pre-training: from LP to {method}, accuracy")
    assert words in run.said
    cost = paired_differences(samples, "label_noise", 0.0, ["protocol", "method"]).query("label_noise == 0.4")
    for line in changes_in_words(cost, "{protocol}, {method}: accuracy").splitlines():
        assert line in run.said


def test_repairs_are_told_where_they_beat_nmtune(ran, study_again):
    run = ran("10_other_repairs")
    run.check_page(figures=2)
    rows, selections = run.table(), run.table("selections")
    assert rows["method"].nunique() == 10
    accuracy = rows.query("metric == 'accuracy' and ratio == ratio").groupby(["method", "protocol"])["value"].mean()
    table = run.html("whitened")
    assert all(f">{value:.3f}<" in table for value in accuracy.xs("ID", level="protocol"))
    chosen = selections.query("ratio == ratio and method == 'NMTune'").groupby("candidate", sort=False)["chosen"].mean()
    assert f"{chosen.idxmax()}, in {chosen.max():.0%} of the folds" in run.titles[1]
    repairs = {
        "NMTune": (NMTune(**FIT), {"learning_rate": [3e-4, 1e-3, 3e-3], "weights": [0.001, 0.01, 0.1]}),
        "ridge": (RidgeClassifier(), {"alpha": [0.1, 1.0, 10.0, 100.0]}),
    }
    samples = study_again(methods=repairs).samples.query("ratio == ratio")
    ridge = paired_differences(samples, "method", "NMTune", ["task", "protocol"])
    for row in ridge.itertuples():
        for verdict, is_clear in {"better": row.high < 0, "worse": row.low > 0}.items():
            places = run.said.split(f"clearly {verdict} on ")[1].split(".")[0].split("; ")
            named = [place for place in places if place.startswith(f"{row.protocol} {row.task} than ")]
            assert any("ridge" in place for place in named) == is_clear


def test_tuned_networks_are_compared_with_nmtune(ran):
    run = ran("12_beyond_the_black_box")
    run.check_page(figures=3)
    rows = run.table()
    assert list(dict.fromkeys(rows["method"])) == ["LP", "MLP", "NMTune", *TUNED]
    assert set(rows["task"]) == {"digits", "icons"}
    value = rows.query("metric == 'accuracy' and protocol == 'ID' and ratio == 0.3").set_index("method")["value"]
    for name in ("full", "LoRA"):
        sentence = run.said.split(f"ID at 30 %: from NMTune to {name}, accuracy ")[1].split("\n")[0]
        assert f"{abs(value[name] - value['NMTune']):.3f}" in sentence
        added = run.said.split(f"ID, {name} + terms: accuracy ")[1].split("\n")[0]
        means = rows.query("metric == 'accuracy' and protocol == 'ID'").groupby("method")["value"].mean()
        assert f"{abs(means[f'{name} + terms'] - means[name]):.3f}" in added


def test_costs_are_those_of_the_repeats(ran):
    run = ran("12_beyond_the_black_box")
    seconds, upstream = run.table("runtime"), run.table("upstream_runtime")
    assert set(seconds["repeat"]) == set(upstream["repeat"]) == {1, 2}
    assert set(upstream["step"]) == {"extraction", "pre-training", "spectrum"}
    assert (pd.concat([seconds, upstream])["seconds"] > 0).all()
    fits = seconds.query("step == 'fit'").pivot_table(index="repeat", columns="method", values="seconds")
    times = fits.div(fits["LP"], axis="index").median()
    shown = dict(part.rsplit(" ", 1) for part in run.titles[2].split(": ")[1].split("; "))
    assert set(shown) == {"MLP", "NMTune", "exact LP", *TUNED}
    for name, value in shown.items():
        assert float(value.replace(",", "")) == pytest.approx(times[name], rel=0.06)
    assert "one thread of" in run.said
    lines = [run.said.split(f"\n- {name}: ")[-1].split("\n")[0] for name in ("LoRA", "full")]
    lora, full = (int(line.split("to fit, ")[1].split()[0].replace(",", "")) for line in lines)
    assert lora < full


def test_real_models_learn_from_names_and_are_tested_on_keywords(ran):
    run = ran("13_real_models")
    run.check_page(figures=2)
    rows, samples = run.table(), run.table("samples")
    assert set(rows["backbone"]) == {MODEL, BASELINE}
    assert np.isnan(rows["ratio"]).all()  # nobody knows the noise
    assert tuple(rows.columns) == RESULT_COLUMNS
    folds = rows[["protocol", "train_domain", "test_domain"]].drop_duplicates()
    assert sorted(folds.itertuples(index=False, name=None)) == [("ID", "name", "name"), ("OOD", "name", "keywords")]
    assert set(samples.query("protocol == 'OOD'")["domain"]) == {"keywords"}


def test_real_models_are_told_as_measured(ran):
    run = ran("13_real_models")
    samples = run.table("samples")
    table = run.html(">interval<")
    for score in accuracy_intervals(samples, ["backbone", "protocol", "method"]).itertuples():
        assert f">{score.mean:.3f}<" in table
        assert f">[{score.low:.3f}, {score.high:.3f}]<" in table
    bought = paired_differences(samples.query("method == 'LP'"), "backbone", BASELINE, ["protocol"])
    each = "{protocol}: from " + BASELINE + " to {backbone}, accuracy of the linear probe"
    assert changes_in_words(bought, each) in run.said
    probes = samples.query("backbone == @MODEL and method != 'MLP'")
    gains = paired_differences(probes, "method", "LP", ["domain", "protocol"])
    assert run.titles[0].startswith(
        f"NMTune is clearly above the linear probe in {(gains['low'] > 0).sum()} and clearly below in "
        f"{(gains['high'] < 0).sum()} of 2 pairs of model and domain"
    )


def test_one_seed_settles_no_claim_and_each_head_is_chosen_once_a_fold(ran):
    run = ran("13_real_models")
    verdicts, chosen = run.table("verdicts"), run.table("selections").query("chosen")
    assert set(verdicts["backbone"]) == {MODEL}
    assert overall_verdict(verdicts["verdict"]) == "inconclusive"
    assert f"of {len(verdicts)} rows, 0 supported, 0 contradicted, {len(verdicts)} inconclusive" in run.said
    assert "is settled for 0 of 1 model(s)" in run.said
    spectral = (verdicts["metric"] != "accuracy").sum()
    assert run.titles[1] == f"SVE and LSVR: 0 of {spectral} rows as claimed, 0 the other way"
    assert len(chosen) == 2 * 2 * 3  # models, folds, heads; one seed
    assert not chosen.duplicated(["backbone", "protocol", "method"]).any()


def test_vision_has_its_own_baseline(tmp_path, smoke_home):
    params = {"backbones": ["compact-resnet:8"], "epochs": 1, "id_tasks": ["icons-badges"]}
    params |= {"ood_tasks": {"icons-badges": ["colour"]}, "sources": {"icons-badges": ["duotone"]}}
    rows = run_notebook("13_real_models", tmp_path, smoke_home, profile=SMALLEST, **params).table()
    assert set(rows["backbone"]) == {"compact-resnet:8", "compact-resnet"}
    folds = rows[["protocol", "train_domain", "test_domain"]].drop_duplicates()
    assert sorted(folds.itertuples(index=False, name=None)) == [
        ("ID", "duotone", "duotone"),
        ("OOD", "duotone", "colour"),
    ]
