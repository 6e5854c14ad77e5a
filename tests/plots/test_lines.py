"""Lines draw the numbers that they are given, in order, each method and ratio in its place."""

import numpy as np
import pandas as pd
import pytest

from nml_kit import plots
from nml_kit.plots import found_lines
from tests.plots.tables import (
    HOSTILE,
    LABELS,
    by_share,
    curves,
    drawn,
    in_legend,
    panel_names,
    points,
    series_results,
    summary,
)


def test_accuracy_has_a_panel_per_task_a_line_per_method_and_intervals():
    figure = plots.accuracy_lines(summary(), title="t")
    assert [name.split("  ")[0] for name in panel_names(figure)] == ["ID · emoji", "ID · icons", "OOD · icons"]
    lines = drawn(figure, "lines+markers")
    assert len(lines) == 9
    assert [line.marker.symbol for line in lines[:3]] == ["circle", "square", "diamond"]
    np.testing.assert_allclose(lines[2].y, [0.8, 0.79, 0.77])
    np.testing.assert_allclose(lines[2].error_y.array, [0.01] * 3)
    np.testing.assert_allclose(lines[1].x, [0.0, 0.1, 0.3], atol=1e-12)
    assert abs(np.asarray(lines[0].x) - np.asarray(lines[1].x)).max() < 0.01  # apart, but at the same tick
    assert list(figure.layout.xaxis.ticktext) == LABELS[:3]


def test_the_random_baseline_is_a_line_only_where_it_leaves_the_others_room():
    far, near = (plots.accuracy_lines(summary(value), title="t") for value in (0.2, 0.75))
    assert not far.layout.shapes
    assert [(rule.y0, rule.line.dash) for rule in near.layout.shapes] == [(0.75, "dot")] * 3
    assert all("random init 0.200" in name for name in panel_names(far))
    none = plots.accuracy_lines(summary().dropna(subset=["ratio"]), title="t")
    assert not any("random" in name for name in panel_names(none))


@pytest.mark.parametrize("draw", [plots.method_comparison, plots.accuracy_lines])
def test_a_method_that_one_task_lacks_is_still_in_the_legend_once(draw):
    table = summary()
    table = table[(table["method"] != "LP") | (table["protocol"] == "OOD")]
    assert sorted(in_legend(draw(table, title="t"))) == ["LP", "MLP", "NMTune"]


def test_a_line_for_each_ratio_and_no_random_network():
    table = by_share()
    figure = plots.accuracy_lines(table[table["method"] == "LP"], "fraction", series="ratio", title="t")
    assert [trace.name for trace in figure.data] == ["0 %", "30 %"] * 2
    np.testing.assert_array_equal(
        figure.data[3].y, table.query("method == 'LP' and protocol == 'OOD' and ratio == 0.3")["mean"]
    )
    assert list(figure.layout.xaxis.ticktext) == ["10 %", "100 %"]


def test_a_line_for_each_method_in_a_panel_for_each_ratio():
    table = by_share().drop(columns="task")
    figure = plots.accuracy_lines(table, "fraction", panel=("protocol", "ratio"), title="t")
    assert panel_names(figure) == ["ID · 0 %", "ID · 30 %", "OOD · 0 %", "OOD · 30 %"]
    assert [trace.name for trace in figure.data] == ["LP", "NMTune"] * 4
    np.testing.assert_array_equal(figure.data[0].x, [0.1, 1.0])
    assert in_legend(figure) == ["LP", "NMTune"]


def test_metric_joins_each_data_set_in_ratio_order_and_names_it_at_the_end():
    figure = plots.metric_against_accuracy(points(), "sve", title="t")
    lines = drawn(figure, "lines")
    assert len(lines) == 3
    for line in lines:
        np.testing.assert_allclose(line.x, [0, 0.1, 0.3])  # change of SVE from the lowest ratio
        np.testing.assert_allclose(line.y, [0, -0.01, -0.03])
    in_domain, out = drawn(figure, "text")
    assert [text.replace("&nbsp;", "") for text in (*in_domain.text, *out.text)] == ["emoji", "icons", "icons"]
    assert list(in_domain.x) == pytest.approx([0.3, 0.3])
    assert in_domain.y[0] != in_domain.y[1]  # both lines end at one point: the names are pushed apart
    hovers = [trace for trace in drawn(figure, "markers") if trace.name == "10 %"]
    assert list(hovers[0].text) == ["ID · icons", "ID · emoji"]


def test_metric_shows_the_values_at_a_click():
    figure = plots.metric_against_accuracy(points(), "sve", title="t")
    change, values = figure.layout.updatemenus[0].buttons
    assert (change.label, values.label) == ("Change from clean", "Values")
    for trace, x, y in zip(figure.data, change.args[0]["x"], change.args[0]["y"], strict=True):
        np.testing.assert_allclose(trace.x, np.array(x, float))
        np.testing.assert_allclose(trace.y, np.array(y, float))
    lines = [place for place, trace in enumerate(figure.data) if trace.mode == "lines"]
    np.testing.assert_allclose(values.args[0]["x"][lines[0]], [4.9, 5.0, 5.2])
    np.testing.assert_allclose(values.args[0]["y"][lines[0]], [0.9, 0.89, 0.87])
    assert values.args[1]["xaxis.title.text"] == "SVE (nats)"
    assert values.args[1]["xaxis.range"][0] < 4.9 < 5.2 < values.args[1]["xaxis.range"][1]


def test_curves_show_the_mean_over_seeds_and_their_span():
    history = curves().query("variant == 'as the profile'").drop(columns="variant")
    figure = plots.pretraining_curves(history, title="t")
    lines = drawn(figure, "lines+markers")
    # three panels, but nothing is to memorise at ratio 0
    assert [(line.name, line.yaxis) for line in lines] == [
        ("0 %", "y"), ("30 %", "y"), ("0 %", "y2"), ("30 %", "y2"), ("30 %", "y3")
    ]  # fmt: skip
    np.testing.assert_allclose(lines[-1].y, [0.25] * 4)
    [band] = [trace for trace in figure.data if trace.fill and trace.yaxis == "y3" and len(trace.y)]
    assert (min(band.y), max(band.y)) == pytest.approx((0.2, 0.3))


@pytest.mark.parametrize(("epochs", "step"), [(1, 1), (2, 1), (8, 2), (24, 4), (30, 5)])
def test_curves_have_whole_epochs_and_a_style_for_each_variant(epochs, step):
    figure = plots.pretraining_curves(curves(epochs).drop(columns="loss"), title="t")
    assert panel_names(figure) == ["accuracy on clean test images", "share of the noise memorised"]
    assert {(axis.tick0, axis.dtick) for axis in figure.select_xaxes()} == {(0, step)}
    styles = {(trace.line.dash, trace.marker.symbol) for trace in figure.data}
    assert len(styles) == len({dash for dash, _ in styles}) == len({symbol for _, symbol in styles}) == 2
    assert len(in_legend(figure)) == 4


def test_results_are_drawn_with_their_chance_and_the_random_network_apart():
    figure = plots.results_against_ratio(series_results(), title="T", y_title="share", legend="L")
    assert figure.layout.xaxis.ticktext == ("random init", "0 %", "30 %")
    trained, chance, random = figure.data[:3]
    assert list(chance.y) == [0.25] * 3
    assert (list(trained.x), list(trained.y)) == ([1, 2], [0.6, 0.5])
    assert (list(random.x), list(random.y), random.marker.symbol) == ([0], [0.2], "triangle-up-open")
    assert len(figure.data) == 6
    assert in_legend(figure) == ["top 1"]


def test_accuracies_found_so_far():
    table = pd.DataFrame({"line": HOSTILE, "ratio": [0.1, 0.3], "accuracy": [0.5, 0.4], "n": [4, 5]})
    [line] = found_lines(table, title="t").data
    assert (list(line.x), list(line.y), list(line.text)) == ([0.1, 0.3], [0.5, 0.4], ["4 results", "5 results"])
    assert not found_lines(table.iloc[:0], title="t").data
