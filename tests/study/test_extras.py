"""Tables of a small study's pre-training against the cards and the zero-shot results of its networks one by one."""

import math
import os

import numpy as np
import pandas as pd
import pytest
import torch

from nml_kit.errors import InvalidInputError
from nml_kit.inference import accuracy_intervals
from nml_kit.study import (
    Origin,
    above_chance,
    downstream_tasks,
    machine_in_words,
    pretrained_backbone,
    pretraining_history,
    pretraining_task,
    retrieval_samples,
    seconds_in_turn,
    zero_shot_predictions,
    zero_shot_samples,
)
from nml_kit.study.extras import retrieval_recall


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


def test_calls_take_turns_after_a_round_that_is_not_counted_on_one_thread():
    order, threads = [], torch.get_num_threads()
    calls = {(name, "fit"): lambda name=name: order.append((name, torch.get_num_threads())) for name in "ab"}
    found = seconds_in_turn(calls, repeats=3)
    assert order == [("a", 1), ("b", 1)] * 4
    assert found[["method", "repeat"]].to_numpy().tolist() == [[m, r] for r in (1, 2, 3) for m in "ab"]
    assert torch.get_num_threads() == threads
    with pytest.raises(InvalidInputError, match="at least one repeat, got 0"):
        seconds_in_turn(calls, repeats=0)


@pytest.mark.parametrize(("load", "state"), [(0.5, "not overloaded"), (1e6, "busy")])
def test_the_machine_tells_its_load(monkeypatch, load, state):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, math.nan, math.nan), raising=False)
    assert f"load of the last minute {load:.1f}, {state}" in machine_in_words()
    monkeypatch.delattr(os, "getloadavg")
    assert "load" not in machine_in_words()
