"""The playground of terms: its numbers against heads fitted by hand and judged by scikit-learn and numpy."""

import functools

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from sklearn.metrics import accuracy_score

from nml_kit.backbones import Backbone, load_backbone
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import extract_features
from nml_kit.heads import LinearProbe, NMTune
from nml_kit.plots import head_accuracy, head_spectra, weight_page
from nml_kit.study import StudyResults, downstream_tasks, load_profile, whole_features
from nml_kit.widgets.terms import TermPlayground
from nml_kit.widgets.trials import (
    TERM_SETS,
    baseline_trial,
    joined,
    nmtune_head,
    quick_epochs,
    trial_accuracy,
    try_heads,
    weight_grid,
)

EVIL = "<img src=x onerror=alert(1)>"


@functools.cache
def network(_, ratio: float) -> Backbone:
    return load_backbone("compact-resnet:8", seed=round(10 * ratio))


@pytest.fixture(scope="module")
def results() -> StudyResults:
    folds = [("digits", "ID", "all"), ("icons", "ID", "all"), ("icons", "OOD", "outline"), ("icons", "OOD", "filled")]
    rows = [
        {"task": task, "protocol": protocol, "test_domain": domain, "objective": objective, "ratio": ratio}
        for task, protocol, domain in folds
        for objective in ("supervised", "contrastive")
        for ratio in (float("nan"), 0.0, 0.3)
    ]
    none = pd.DataFrame()
    return StudyResults("smoke", pd.DataFrame(rows), none, none, network)


@pytest.fixture(autouse=True, scope="module")
def _few_steps():
    """The heads need not be good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nml_kit.widgets.trials._STEPS", 60)
        yield


@pytest.fixture(autouse=True)
def _store_of_the_session(smoke_home, monkeypatch):
    """Features of the frozen networks are made once."""
    monkeypatch.setenv("NML_HOME", str(smoke_home))


@pytest.fixture(scope="module")
def opened(results) -> tuple[TermPlayground, dict]:
    """A playground, for it fits heads to open, and the view that it opens with."""
    playground = TermPlayground(results)
    return playground, playground.view


@pytest.fixture
def playground(opened) -> TermPlayground:
    playground, view = opened
    playground.view = view
    return playground


def shown_accuracy(figure: go.Figure, method: str) -> list[float]:
    return [float(trace.x[0]) for trace in figure.data if trace.name == method]


def icons_features(ratio: float):
    return extract_features(
        downstream_tasks(load_profile("smoke"))["icons"], network("supervised", ratio), progress=False
    )


def split_of(features, domain: str):
    """Train and test rows of the ID and of the OOD fold."""
    train, test, held = features.splits == "train", features.splits == "test", features.domains == domain
    return [(train, test), (train & ~held, test & held)]


def test_accuracy_and_spectrum_are_those_of_a_head_fitted_by_hand(playground):
    playground.choose(task="icons", held_out="outline", ratio=0.3, log_weight=0.5, MSE=False)
    features, expected, heads = icons_features(0.3), [], []
    X, y = features.values, features.labels
    epochs = quick_epochs(int((features.splits == "train").sum()))
    for train, test in split_of(features, "outline"):
        weights = (0.0, 10**0.5, 10**0.5)
        heads.append(NMTune(weights=weights, epochs=epochs, batch_size=64, random_state=0).fit(X[train], y[train]))
        expected.append(accuracy_score(y[test], heads[-1].predict(X[test])))
    assert shown_accuracy(playground.accuracy.figure, "NMTune") == pytest.approx(expected)
    values = np.linalg.svd(heads[0].transform(X[features.splits == "test"]), compute_uv=False)
    shares = values / values.sum()
    [line] = [trace for trace in playground.spectra.figure.data if trace.name.startswith("NMTune")]
    assert np.array(line.y) == pytest.approx(shares[: len(line.y)], rel=1e-6)
    sve = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert line.name == f"NMTune: SVE {sve:.3f}, LSVR {-np.log(shares[0]):.3f}"
    assert f", {epochs} epochs of " in playground.text.value
    assert f"of {(features.splits == 'train').sum()} samples" in playground.text.value
    assert "Loss CE + 3.16 · COV + 3.16 · SVD." in playground.text.value


def test_the_linear_probe_beside_it_has_as_many_epochs(playground):
    playground.choose(task="icons", held_out="filled", ratio=0.0)
    features = icons_features(0.0)
    epochs = quick_epochs(int((features.splits == "train").sum()))
    expected = []
    for train, test in split_of(features, "filled"):
        probe = LinearProbe(epochs=epochs, batch_size=64).fit(features.values[train], features.labels[train])
        expected.append(accuracy_score(features.labels[test], probe.predict(features.values[test])))
    # fitted beside the MLP, which changes last bits
    assert shown_accuracy(playground.accuracy.figure, "LP") == pytest.approx(expected, abs=0.01)


def test_without_any_term_it_is_mlp(playground):
    playground.choose(MSE=False, COV=False, SVD=False, log_weight=1.0)
    accuracy = playground.accuracy.figure
    assert shown_accuracy(accuracy, "NMTune") == pytest.approx(shown_accuracy(accuracy, "MLP"), abs=0.01)
    assert "Loss CE. " in playground.text.value


def test_only_tasks_with_a_held_out_domain_have_an_ood_panel(playground):
    playground.choose(task="digits")
    assert playground.view["held_out"] == "none"
    assert len(shown_accuracy(playground.accuracy.figure, "NMTune")) == 1
    assert "OOD" not in playground.text.value
    playground.choose(task="icons", held_out="outline")
    assert len(shown_accuracy(playground.accuracy.figure, "NMTune")) == 2
    assert "OOD accuracy of NMTune" in playground.text.value


def test_a_task_that_there_is_not_leaves_the_domains(playground):
    playground.choose(task="icons", held_out="filled")
    with pytest.raises(InvalidInputError, match="Expected task"):
        playground.choose(task="nowhere")
    playground.choose(held_out="outline")
    assert playground.view["held_out"] == "outline"


def test_the_view_is_set_as_it_is_read(playground, results):
    saved = {"objective": "contrastive", "ratio": 0.0, "task": "icons", "held_out": "filled",
             "log_weight": -1.5, "MSE": True, "COV": False, "SVD": True}  # fmt: skip
    playground.view = saved
    assert playground.view == saved
    again = TermPlayground(results)
    again.view = saved
    assert shown_accuracy(again.accuracy.figure, "NMTune") == shown_accuracy(playground.accuracy.figure, "NMTune")


def test_a_choice_that_is_not_offered_is_an_error(playground):
    before = playground.view
    for choice in ({"task": "nowhere"}, {"held_out": "outline"}, {"ratio": 0.7}, {"log_weight": 3.0}):
        with pytest.raises(InvalidInputError, match=f"Expected {next(iter(choice))}"):
            playground.choose(**choice)
        assert playground.view == before
    with pytest.raises(UnknownNameError, match="weight"):
        playground.choose(weight=1.0)


def test_static_draws_the_grid_with_buttons_for_the_change_from_mlp(results, playground, monkeypatch):
    monkeypatch.setattr("nml_kit.widgets.terms._WEIGHTS", (0.01, 1.0))
    playground.choose(task="icons", held_out="outline")
    page = playground.static()
    assert isinstance(page, go.Figure)
    assert not isinstance(page, go.FigureWidget)
    panels = [note.text for note in page.layout.annotations]
    assert panels == ["ID accuracy", "OOD accuracy", "SVE"]
    assert {trace.name for trace in page.data} == {*TERM_SETS, "LP", "MLP"}
    values, change = page.layout.updatemenus[0].buttons
    assert (values.label, change.label) == ("Values", "Change from MLP")
    for number, trace in enumerate(page.data):
        assert values.args[0]["y"][number] == pytest.approx(list(trace.y), abs=1e-4)
        [mlp] = [other.y[0] for other in page.data if other.name == "MLP" and other.yaxis == trace.yaxis]
        assert change.args[0]["y"][number] == pytest.approx(np.array(trace.y) - mlp, abs=1e-4)
    features = icons_features(0.3)
    epochs = quick_epochs(int((features.splits == "train").sum()))
    only_svd = nmtune_head(1.0, ["SVD"], recipe="paper", epochs=epochs)
    alone = trial_accuracy(try_heads(features, "outline", {"alone": only_svd})).set_index("protocol")["mean"]
    for trace, protocol in zip([t for t in page.data if t.name == "only SVD"], ("ID", "OOD"), strict=False):
        assert list(trace.x) == [0.01, 1.0]
        assert trace.y[1] == pytest.approx(alone[protocol], abs=0.02)  # side by side, last bits differ


def test_names_from_data_are_shown_as_text():
    scores = pd.DataFrame({"protocol": ["ID"], "method": [EVIL], "mean": [0.5], "low": [0.4], "high": [0.6]})
    spectra = pd.DataFrame({"method": EVIL, "index": [1, 2], "share": [0.9, 0.1]})
    metrics = pd.DataFrame({"method": [EVIL], "sve": [0.3], "lsvr": [0.1]})
    grid = pd.DataFrame({"method": [EVIL, "MLP"], "weight": [1.0, np.nan], "quantity": EVIL, "value": 0.5})
    for figure in (head_accuracy(scores, title=EVIL), head_spectra(spectra, metrics, title=EVIL),
                   weight_page(grid, title=EVIL)):  # fmt: skip
        assert "<img" not in str(figure.to_dict())
        assert "&lt;img" in figure.layout.title.text


def test_a_study_offers_its_tasks_and_held_out_domains(playground):
    assert playground._controls["task"].options == ("digits", "icons")
    playground.choose(task="icons")
    assert playground._controls["held_out"].options == ("none", "filled", "outline")


def test_what_cannot_be_fitted_is_an_error(results):
    with pytest.raises(UnknownNameError, match="did you mean 'icons'"):
        whole_features(results, "supervised", 0.3, "icon")
    with pytest.raises(UnknownNameError, match="term 'SVE'"):
        nmtune_head(0.1, ["SVE"], recipe="paper", epochs=1)
    with pytest.raises(UnknownNameError, match="domain"):
        try_heads(icons_features(0.0), "nowhere", {"NMTune": nmtune_head(0.1, [], recipe="paper", epochs=1)})
    with pytest.raises(InvalidInputError, match="missing: value"):
        weight_page(pd.DataFrame({"method": ["LP"], "weight": [1.0], "quantity": ["SVE"]}), title="")


def test_a_trial_and_its_baselines_join(results):
    features = icons_features(0.0)
    first = baseline_trial(features, "", recipe="paper", epochs=2)
    assert baseline_trial(features, "", recipe="paper", epochs=2) is first
    both = joined(first, try_heads(features, "", {"NMTune": nmtune_head(0.1, ["MSE"], recipe="paper", epochs=2)}))
    assert trial_accuracy(both)["method"].tolist() == ["LP", "MLP", "NMTune"]
    assert both.seconds > first.seconds > 0
    grid = weight_grid(features, "", recipe="paper", epochs=2, weights=[0.1])
    assert grid["quantity"].unique().tolist() == ["ID accuracy", "SVE"]
    assert len(grid) == 2 * (len(TERM_SETS) + 2)
