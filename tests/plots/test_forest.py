"""Forest plots show every effect once, in its row and mark; pairs and bars what their tables say."""

import numpy as np
import pandas as pd
import pytest

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from nml_kit.inference import judge_claims
from nml_kit.plots import claim_effects
from tests.inference.test_claims import DOWN, HUMP, simulate
from tests.plots.tables import (
    CHANGES,
    CHOICES,
    COSTS,
    DIFFERENCES,
    VARIANTS,
    changes,
    choices,
    costs,
    differences,
    drawn,
    effects,
    in_legend,
    panel_names,
    selections,
    summary,
)


@pytest.fixture(scope="module")
def verdicts():
    return judge_claims(*simulate(accuracy={("OOD", "LP"): DOWN, ("ID", "LP"): HUMP}, samples=300))


def test_every_effect_is_drawn_once_in_the_mark_of_its_verdict(verdicts):
    accuracy = verdicts[verdicts["claim"].isin(["C1", "C2", "C6"])]
    figure = claim_effects(accuracy, title="Noise and accuracy")
    drawn = sorted((trace.name, x) for trace in figure.data for x in trace.x)
    assert drawn == sorted(zip(accuracy["verdict"], accuracy["effect"], strict=True))
    reaches = np.concatenate([trace.x + trace.error_x.array for trace in figure.data])
    np.testing.assert_allclose(np.sort(reaches), np.sort(accuracy["high"]))
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert sorted(names) == sorted(set(accuracy["verdict"]))
    nulls = [shape.x0 for shape in figure.layout.shapes]
    assert sorted(nulls) == [-0.005] + [0.0] * (len(nulls) - 1)
    assert [note.text for note in figure.layout.annotations] == [
        f"{claim} · {contrast}" for claim, contrast in accuracy[["claim", "contrast"]].drop_duplicates().to_numpy()
    ]


def test_a_panel_is_named_after_its_claim_contrast_and_metric(verdicts):
    figure = claim_effects(verdicts[verdicts["claim"].isin(["C3", "C4"])], title="Spectra")
    assert [note.text for note in figure.layout.annotations] == [
        "C3 · LP: 5 % − 0 %, SVE", "C3 · LP: trend over ratios, SVE", "C4 · LP: trend over ratios, LSVR",
        "C4 · LP: rank correlation of LSVR and accuracy",
    ]  # fmt: skip
    assert [axis.ticktext for axis in figure.select_yaxes()] == [("ID · a", "ID · b")] * 2 + [
        ("OOD · c", "OOD · d")
    ] * 2


def test_texts_of_the_data_are_shown_as_text(verdicts):
    spoilt = verdicts[verdicts["claim"] == "C2"].assign(task="<b>bold</b>")
    figure = claim_effects(spoilt, title="a < b")
    assert figure.layout.title.text == "a &lt; b"
    assert all("&lt;b&gt;bold" in text for trace in figure.data for text in trace.text)
    assert all("&lt;b&gt;bold" in text for axis in figure.select_yaxes() for text in axis.ticktext)


def test_objectives_are_told_apart_and_missing_effects_explained(verdicts):
    both = pd.concat([verdicts, verdicts.assign(objective="contrastive")])
    figure = claim_effects(both[both["claim"] == "C3"], title="Spectra")
    labels = [label for axis in figure.select_yaxes() for label in axis.ticktext]
    assert "ID · a · contrastive" in labels
    assert "ID · a · supervised" in labels
    nothing = claim_effects(verdicts[verdicts["claim"] == "C7"], title="Contrastive")
    assert "C7: There are no contrastive results for C1." in nothing.layout.annotations[0].text
    with pytest.raises(InvalidInputError, match="missing: verdict"):
        claim_effects(verdicts.drop(columns="verdict"), title="")


def test_methods_are_compared_side_by_side_without_the_random_baseline():
    figure = plots.method_comparison(summary(), title="t")
    traces = drawn(figure, "markers")
    assert len(traces) == 9
    places = np.array([trace.y for trace in traces[:3]])
    np.testing.assert_array_equal(np.round(places), [[0, 1, 2]] * 3)
    assert np.all(np.diff(places, axis=0) > 0.1)  # LP above MLP above NMTune, never on top of each other
    assert list(figure.layout.yaxis.ticktext) == ["0 %", "10 %", "30 %"]
    assert in_legend(figure) == ["LP", "MLP", "NMTune"]


def test_differences_have_a_panel_per_comparison_and_a_zero_line():
    figure = plots.forest_plot(differences(), **DIFFERENCES, title="t")
    assert panel_names(figure) == ["NMTune − LP", "NMTune − MLP"]
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(0, 0), (0, 0)]
    assert list(figure.layout.yaxis.ticktext) == ["ID · emoji", "ID · icons", "OOD · icons"]
    assert len(drawn(figure, "markers")) == 6


def test_each_protocol_is_in_the_legend_once_wherever_it_first_occurs():
    figure = plots.forest_plot(effects(), **VARIANTS, columns=1, title="t")
    assert in_legend(figure) == ["ID", "OOD"]
    of_id, of_ood = drawn(figure, "markers")
    np.testing.assert_array_equal(of_ood.x, [-0.1, 0.2])
    assert (list(of_id.y), list(of_ood.y)) == ([0], [0, 1])  # alone in its panel: on its row
    assert list(figure.layout.yaxis2.ticktext) == ["&lt;img src=x onerror=alert(1)&gt;", "ridge"]


def test_bars_are_the_shares_of_the_choices():
    figure = plots.choice_shares(selections(), title="t")
    np.testing.assert_allclose(figure.data[0].x, [2 / 3, 1 / 3])
    assert list(figure.data[0].y) == ["kNN 1", "kNN 5"]


def test_variants_are_dodged_about_their_row_and_no_legend_is_needed():
    figure = plots.forest_plot(changes(), **CHANGES, title="t", legend="Kind")
    rows = {tuple(np.round(trace.y).tolist()) for trace in drawn(figure, "markers")}
    assert rows <= {(1.0, 0.0), (0.0, 1.0)}
    assert figure.layout.showlegend
    assert not plots.forest_plot(changes().query("variant == 'a'"), **CHANGES, title="t").layout.showlegend


def test_choices_are_rows_with_a_mark_for_each_ratio():
    figure = plots.forest_plot(choices(), **CHOICES, null=None, title="t")
    assert panel_names(figure) == ["SVE (nats)", "LSVR (nats)"]
    assert in_legend(figure) == ["0 %", "10 %", "30 %"]
    means = choices().query("metric == 'sve' and ratio == 0.1")["mean"]
    np.testing.assert_array_equal(figure.data[1].x, means)
    assert figure.layout.yaxis.ticktext[0] == "test"


def test_costs_have_a_panel_per_step_and_a_place_per_task_and_method():
    table = costs()
    figure = plots.forest_plot(table, **COSTS, null=None, title="t")
    assert panel_names(figure) == ["fit", "predict"]
    keys = [(step, method) for step in ("fit", "predict") for method in ("LP", "NMTune")]
    assert [trace.name for trace in figure.data] == [method for _, method in keys]
    for trace, (step, method) in zip(figure.data, keys, strict=True):
        part = table[(table["step"] == step) & (table["method"] == method)]
        assert list(trace.x) == part["mean"].tolist()
        np.testing.assert_allclose(trace.x + trace.error_x.array, part["high"])
        np.testing.assert_allclose(trace.x - trace.error_x.arrayminus, part["low"])
        assert [round(place) for place in trace.y] == [0, 1]
    assert not figure.layout.shapes
