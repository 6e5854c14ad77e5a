"""Tables of a small study's pre-training against the cards and the zero-shot results of its networks one by one."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.inference import accuracy_intervals
from nml_kit.pretraining import ContrastiveRecipe
from nml_kit.store import Store
from nml_kit.study import (
    Origin,
    Profile,
    above_chance,
    downstream_tasks,
    load_profile,
    pretrained_backbone,
    pretraining_history,
    pretraining_task,
    retrieval_samples,
    zero_shot_predictions,
    zero_shot_samples,
)
from nml_kit.study.zero_shot import retrieval_recall

pytestmark = pytest.mark.xdist_group("pretraining_study")


@pytest.fixture(scope="module")
def profile() -> Profile:
    smoke = load_profile("smoke").model_dump()
    contrastive = ContrastiveRecipe(architecture="clip-compact:8", epochs=2, batch_size=32)
    downstream = {"id": ("digits",), "ood": {"icons": ("outline",)}, "train_per_class": 2}
    return Profile.model_validate(smoke | {"downstream": downstream, "contrastive": contrastive, "seeds": (0, 1)})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def history(profile, home) -> pd.DataFrame:
    return pretraining_history(profile, "contrastive", store=home, jobs=1, progress=False)


def backbone_of(profile, home, ratio, seed):
    origin = Origin(ratio, seed, "contrastive")
    return pretrained_backbone(profile, pretraining_task(profile), origin, store=home, progress=False)


def test_history_has_the_rows_of_every_card(profile, home, history):
    assert len(history) == 2 * 2 * 2
    for (ratio, seed), rows in history.groupby(["ratio", "seed"]):
        expected = pd.DataFrame(backbone_of(profile, home, ratio, seed).card["history"])
        for column in expected:
            np.testing.assert_array_equal(rows[column], expected[column])
    assert history["memorised"].isna().tolist() == (history["ratio"] == 0).tolist()


def test_supervised_history_has_the_same_columns(profile, home, history):
    supervised = pretraining_history(profile, store=home, jobs=1, progress=False)
    assert supervised.columns.tolist() == history.columns.tolist()
    assert set(supervised["objective"]) == {"supervised"}
    assert set(supervised["epoch"]) == {1}


def test_zero_shot_rows_are_those_of_each_network(profile, home):
    samples = zero_shot_samples(profile, store=home, jobs=1, progress=False)
    backbone, icons = backbone_of(profile, home, 0.3, 1), downstream_tasks(profile)["icons"]
    expected = zero_shot_predictions(backbone, icons, store=home)
    found = samples.query("ratio == 0.3 and seed == 1 and task == 'icons'")
    assert found["correct"].tolist() == expected["correct"].tolist()
    assert found["sample"].tolist() == expected["sample"].tolist()
    assert set(samples["task"]) == {"icons-pretrain", "icons"}
    assert samples.loc[samples["ratio"].isna(), "seed"].unique().tolist() == [0]
    pretrained = samples.query("task == 'icons-pretrain' and ratio == 0.3 and seed == 1")
    last = backbone.card["history"][-1]["test_accuracy"]  # measured in training on the same clean test split
    assert pretrained["correct"].mean() == pytest.approx(last)


def test_retrieval_rows_and_the_margin_above_chance(profile, home):
    samples = retrieval_samples(profile, store=home, jobs=1, progress=False)
    backbone = backbone_of(profile, home, 0.0, 0)
    expected = retrieval_recall(backbone, pretraining_task(profile).select(split="test"), store=home)
    found = samples.query("ratio == 0 and seed == 0 and task == 'icons-pretrain'")
    assert found["correct"].tolist() == expected["hit"].tolist()
    by = ["task", "direction", "k", "ratio"]
    recall, margin = accuracy_intervals(samples, by), accuracy_intervals(above_chance(samples), by)
    chance = samples.groupby(by, dropna=False)["chance"].mean().to_numpy()
    np.testing.assert_allclose(recall["mean"] - margin["mean"], chance, atol=1e-12)
