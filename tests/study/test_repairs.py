"""Other repairs of frozen features: every family can be tuned and tested, and a study of them is complete."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import StandardScaler

from nml_kit.errors import UnknownNameError
from nml_kit.features import Features, Fold, in_domain_fold
from nml_kit.heads import ExactLinearProbe
from nml_kit.store import Store
from nml_kit.study import (
    RESULT_COLUMNS,
    Profile,
    expanded,
    load_profile,
    minus_others,
    run_repair_study,
    select_head,
    verdicts,
)
from nml_kit.study.evaluate import settings_hash
from nml_kit.study.extraction import study_sources
from nml_kit.study.repairs import FAMILIES, repair_candidates

SMOKE = load_profile("smoke")
pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def profile() -> Profile:
    downstream = {"id": ("digits",), "ood": {"icons": ("outline",)}, "train_per_class": 4}
    return Profile.model_validate(SMOKE.model_dump() | {"downstream": downstream, "ratios": (0.0, 0.3)})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("repairs"))


@pytest.fixture(scope="module")
def found(profile, home):
    return run_repair_study(profile, store=home, jobs=1, progress=False)


def separable(per_class: int = 40) -> Features:
    """Three classes on orthogonal directions of very unequal scale."""
    generator = np.random.default_rng(0)
    labels = np.arange(3 * per_class) % 3
    values = generator.normal(size=(len(labels), 12)) * 0.3 + 2 * np.eye(12)[labels]
    scales = np.repeat([3.0, 1.0, 0.3], 4)
    splits = np.where(np.arange(len(labels)) % 4 == 3, "test", "train")
    ids = np.array([f"s{row}" for row in range(len(labels))])
    domains = np.full(len(labels), "one")
    return Features("toy", (values * scales).astype(np.float32), ids, labels, ("x", "y", "z"), domains, splits, "f")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_every_family_solves_an_easy_task_without_a_warning(family, fraction, store):
    candidates = repair_candidates(family, load_profile("demo"), seed=0)
    fold = Fold("toy", "ID", fraction=fraction)
    selection = select_head(separable(80), fold, candidates, method=family, seed=0, store=store)
    assert 3 <= len(selection.candidates) <= 9
    assert selection.evaluation.metrics()["accuracy"] > 0.9


def test_settings_of_all_candidates_differ_and_are_the_same_in_another_process():
    hashes = [settings_hash(head) for family in FAMILIES
              for head in expanded(repair_candidates(family, SMOKE, 0)).values()]  # fmt: skip
    assert len(set(hashes)) == len(hashes)
    code = (
        "from nml_kit import load_profile; from nml_kit.study.repairs import *; "
        "from nml_kit.study.selection import expanded; "
        "from nml_kit.study.evaluate import settings_hash; print(*[settings_hash(head) for family in FAMILIES "
        "for head in expanded(repair_candidates(family, load_profile('smoke'), 0)).values()])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).parents[2])  # fmt: skip
    assert there.stdout.split() == hashes


def test_the_standardised_probe_is_the_probe_on_standardised_features(store):
    features = separable()
    selection = select_head(features, in_domain_fold("toy"), repair_candidates("standardised", SMOKE, 0),
                            method="standardised", seed=0, store=store)  # fmt: skip
    penalty = float(selection.candidates[selection.chosen].split("C=")[1])
    train, test = features.select(split="train"), features.select(split="test")
    scale = StandardScaler().fit(train.values)
    alone = ExactLinearProbe(C=penalty).fit(scale.transform(train.values), train.labels)
    np.testing.assert_array_equal(selection.evaluation.predictions, alone.predict(scale.transform(test.values)))


def test_the_study_is_complete_and_says_what_was_chosen(found):
    rows = found.study.rows
    assert tuple(rows.columns) == RESULT_COLUMNS
    # (2 trained networks + 1 random one) × (1 ID fold + 1 OOD fold) × families × 4 metrics
    assert len(rows) == 3 * 2 * len(FAMILIES) * 4
    chosen = found.selections.query("chosen")
    assert len(chosen) == 3 * 2 * len(FAMILIES)
    keys = ["ratio", "seed", "task", "protocol", "method"]
    best = found.selections.groupby(keys, dropna=False)["validation_accuracy"].transform("max")
    first = found.selections[found.selections["validation_accuracy"] == best].drop_duplicates(keys)
    pd.testing.assert_frame_equal(chosen, first)


def test_a_second_run_makes_nothing(found, profile, home):
    before = {info.path for info in home.entries()}
    again = run_repair_study(profile, store=home, jobs=1, progress=False)
    pd.testing.assert_frame_equal(again.study.rows, found.study.rows)
    assert {info.path for info in home.entries()} == before


def test_a_row_of_the_study_is_a_selection_on_its_features(found, profile, home):
    source = study_sources(profile, "supervised", store=home, jobs=1, progress=False)[1]
    candidates = repair_candidates("ridge", profile, source.origin.seed)
    alone = select_head(source.features["digits"], in_domain_fold("digits"), candidates, method="ridge", seed=0,
                        store=Store(home.root / "apart"))  # fmt: skip
    row = found.study.rows.query("ratio == 0 and task == 'digits' and method == 'ridge' and metric == 'accuracy'")
    assert row["value"].item() == alone.evaluation.metrics()["accuracy"]
    assert row["settings_hash"].item() == alone.evaluation.settings_hash


def test_unknown_families_are_refused():
    with pytest.raises(UnknownNameError, match="family of repairs 'rigde': did you mean 'ridge'"):
        repair_candidates("rigde", SMOKE, 0)


def test_verdicts_follow_the_intervals_of_the_turned_difference():
    first, second = ("ID", "a", "ridge", 0.02, 0.01, 0.03), ("OOD", "b", "LP", -0.02, -0.03, -0.01)
    rows = [first, second, ("ID", "c", "kNN", 0.0, -0.1, 0.1)]
    given = pd.DataFrame(rows, columns=["protocol", "task", "method", "mean", "low", "high"])
    said = verdicts(minus_others(given))
    assert said["worse"] == ["ID a: ridge −0.020 [−0.030, −0.010]"]
    assert said["better"] == ["OOD b: LP +0.020 [+0.010, +0.030]"]
    assert len(said["unclear"]) == 1
