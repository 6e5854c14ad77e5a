"""What steps cost: what is timed, how often and in which order; never how fast it is."""

import math
import os

import numpy as np
import pytest
import torch
from nml_kit.study.evaluate import settings_hash
from sklearn.linear_model import LogisticRegression

from nml_kit.backbones import build_network
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.heads import ExactLinearProbe, NMTune
from nml_kit.store import Store
from nml_kit.study import HEADS, METHODS, Origin, Profile, backbone_parameters, costs, load_profile, make_head
from nml_kit.study.runtime import (
    SIZES,
    Subject,
    head_parameters,
    head_seconds,
    image_seconds,
    machine_in_words,
    runtime_subject,
    seconds_in_turn,
    spectrum_seconds,
    throughput,
    timed_head,
)

pytestmark = pytest.mark.xdist_group("study")
REPEATS = 2


@pytest.fixture(scope="module")
def profile() -> Profile:
    downstream = {"id": ("digits", "fashion"), "ood": {"icons": ("outline",)}, "train_per_class": 4}
    return Profile.model_validate(load_profile("smoke").model_dump() | {"downstream": downstream, "head_epochs": 3})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def subject(profile, home) -> Subject:
    return runtime_subject(profile, store=home)


@pytest.fixture(scope="module")
def seconds(subject):
    return head_seconds(subject, repeats=REPEATS)


def test_one_network_is_made_and_it_is_the_first_of_the_profile(subject, home):
    assert subject.origin == Origin(0.0, 0, "supervised")
    assert len(list(home.entries("backbone"))) == 1
    assert list(subject.features) == ["digits", "fashion", "icons"]


def test_every_head_step_and_task_is_timed_in_every_repeat(seconds, profile):
    found = set(seconds[["task", "method", "step", "repeat"]].itertuples(index=False, name=None))
    assert found == {(task, method, step, repeat) for task in profile.downstream.id for method in HEADS
                     for step in ("fit", "predict") for repeat in range(1, REPEATS + 1)}  # fmt: skip
    assert len(seconds) == len(found)
    assert (seconds["seconds"] > 0).all()


def test_the_heads_are_those_of_the_study(seconds, profile):
    hashes = seconds.groupby("method")["settings_hash"].unique().map(list).to_dict()
    expected = {method: [settings_hash(make_head(method, profile, 0))] for method in METHODS}
    assert hashes == expected | {"exact LP": [settings_hash(ExactLinearProbe(random_state=0))]}
    assert timed_head("NMTune", profile, 0).epochs == 3
    with pytest.raises(UnknownNameError, match="method"):
        timed_head("ridge", profile, 0)


def test_sizes_are_those_of_the_layers(seconds):
    D, K = 256, 10  # compact-resnet's features; the paper's MLP has as many hidden units
    linear, mlp = D * K + K, 2 * (D * D + D) + D * K + K
    found = seconds[SIZES].drop_duplicates().set_index(["task", "method"])
    assert found["parameters"].unstack().to_dict("index") == {
        task: {"LP": linear, "MLP": mlp, "NMTune": mlp, "exact LP": linear} for task in ("digits", "fashion")
    }
    assert found["train"].unique().tolist() == [4 * K]
    assert (found[["features", "classes"]] == [D, K]).all(axis=None)


def test_a_probe_of_two_classes_counts_as_in_scikit_learn():
    X = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    y = X[:, 0] > 0
    theirs = LogisticRegression().fit(X, y)
    assert head_parameters(ExactLinearProbe().fit(X, y)) == theirs.coef_.size + theirs.intercept_.size
    # residual: scale, batch normalisation and the layers of 4 D = 64 at least
    head = NMTune(recipe="reference", epochs=1).fit(X, y)
    assert head_parameters(head) == 5 + (5 * 64 + 64) + 2 * 64 + (64 * 5 + 5) + (5 * 2 + 2)


def test_the_backbone_counts_without_its_classifier(subject):
    whole = sum(weight.numel() for weight in build_network("compact-resnet", num_classes=6, seed=0).parameters())
    assert backbone_parameters(subject.backbone) == whole - 6 * (256 + 1)


def test_medians_lie_between_the_repeats_and_ratios_are_taken_within_them(seconds):
    table = costs(seconds)
    assert len(table) == 2 * 2 * len(HEADS) * 2
    assert ((table["low"] > 0) & (table["low"] <= table["median"]) & (table["median"] <= table["high"])).all()
    ratios = table[table["quantity"] == "ratio to LP"]
    assert (ratios.loc[ratios["method"] == "LP", ["low", "median", "high"]] == 1).all(axis=None)
    for row in table.itertuples(index=False):
        mine = seconds.query("task == @row.task and step == @row.step and method == @row.method")["seconds"].to_numpy()
        probe = seconds.query("task == @row.task and step == @row.step and method == 'LP'")["seconds"].to_numpy()
        values = mine / probe if row.quantity == "ratio to LP" else mine
        assert (row.median, row.low, row.high) == pytest.approx((np.median(values), values.min(), values.max()))


def test_calls_take_turns_after_a_round_that_is_not_counted_on_one_thread():
    order, threads = [], torch.get_num_threads()
    calls = {(name, "fit"): lambda name=name: order.append((name, torch.get_num_threads())) for name in "ab"}
    found = seconds_in_turn(calls, repeats=3)
    assert order == [("a", 1), ("b", 1)] * 4
    assert found[["method", "repeat"]].to_numpy().tolist() == [[m, r] for r in (1, 2, 3) for m in "ab"]
    assert torch.get_num_threads() == threads
    order.clear()
    assert len(seconds_in_turn(calls, repeats=1, uncounted=0)) == len(order) == 2
    with pytest.raises(InvalidInputError, match="at least one repeat, got 0"):
        seconds_in_turn(calls, repeats=0)


def test_spectra_are_timed_on_the_test_split(subject):
    found = spectrum_seconds(subject, repeats=REPEATS)
    assert len(found) == 2 * 2 * REPEATS
    assert (found["seconds"] > 0).all()
    for task, part in found.groupby("task"):
        assert part["test"].unique().tolist() == [int((subject.features[task].splits == "test").sum())]


@pytest.mark.parametrize("objective", ["supervised", "contrastive"])
def test_images_go_through_the_network_of_either_objective(profile, home, objective):
    subject = runtime_subject(profile, objective=objective, store=home)
    before = len(list(home.entries("backbone")))
    found = image_seconds(subject, images=20, repeats=1).set_index("step")
    # 12 train images a class in this profile: two classes hold 20; pre-training sees them twice
    assert found["images"].to_dict() == {"extraction": 24, "pre-training": 48}
    assert found["images_per_second"].to_dict() == pytest.approx((found["images"] / found["seconds"]).to_dict())
    assert len(list(home.entries("backbone"))) == before
    speeds = throughput(subject, found.reset_index()).set_index("step")
    assert speeds["epoch_images"].tolist() == [6 * 12] * 2
    expected = (6 * 12 / found["images_per_second"]).to_dict()
    assert speeds["epoch_seconds"].to_dict() == pytest.approx(expected)
    with pytest.raises(InvalidInputError, match="at least one image, got 0"):
        image_seconds(subject, images=0)


@pytest.mark.parametrize(("load", "state"), [(0.5, "not overloaded"), (1e6, "busy")])
def test_the_machine_tells_its_load(monkeypatch, load, state):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, math.nan, math.nan), raising=False)
    assert f"load of the last minute {load:.1f}, {state}" in machine_in_words()
    monkeypatch.delattr(os, "getloadavg")
    assert "load" not in machine_in_words()
