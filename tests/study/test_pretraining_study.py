"""Tables of a small study's pre-training against the cards and the zero-shot results of its networks one by one."""

import math

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import InvalidInputError
from nml_kit.inference import accuracy_intervals
from nml_kit.plots import pretraining as plots_pretraining
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


def test_curves_show_the_mean_over_seeds(history):
    figure = plots_pretraining.pretraining_curves(history, title="Curves")
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    # three panels, but nothing is to memorise at ratio 0
    assert [(line.name, line.yaxis) for line in lines] == [
        ("0 %", "y"), ("0 %", "y2"), ("30 %", "y"), ("30 %", "y2"), ("30 %", "y3")
    ]  # fmt: skip
    mean = history[history["ratio"] == 0.3].groupby("epoch")["loss"].mean()
    np.testing.assert_allclose(lines[2].y, mean)
    with pytest.raises(InvalidInputError, match=r"pretraining_curves expected the columns .*missing: loss"):
        plots_pretraining.pretraining_curves(history.drop(columns="loss"), title="")


def test_results_are_drawn_with_their_chance():
    rows = [(task, ratio, "top 1", mean, mean - 0.1, mean + 0.1, 0.25)
            for task in ("a", "b") for ratio, mean in ((0.0, 0.6), (0.3, 0.5), (math.nan, 0.2))]  # fmt: skip
    summary = pd.DataFrame(rows, columns=["task", "ratio", "series", "mean", "low", "high", "chance"])
    figure = plots_pretraining.results_against_ratio(summary, title="T", y_title="share", legend="L")
    assert figure.layout.xaxis.ticktext == ("random init", "0 %", "30 %")
    chance, trained, random = figure.data[:3]
    assert list(chance.y) == [0.25] * 3
    assert (list(trained.x), list(trained.y)) == ([1, 2], [0.6, 0.5])
    assert (list(random.x), list(random.y)) == ([0], [0.2])
    assert len(figure.data) == 6
    assert [trace.name for trace in figure.data if trace.showlegend] == ["top 1"]
