"""Figures are checked on what they draw: values, order, colours, labels; and on what they refuse."""

import base64
import io
import json
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from plotly.colors import unlabel_rgb

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.plots import as_text
from nml_kit.plots.theme import method_marks, ratio_color, wrap

NAN = math.nan
RATIOS = [0.3, NAN, 0.0, 0.1]  # out of order on purpose
LABELS = ["0 %", "10 %", "30 %", "random init"]
HOSTILE = "<img src=x onerror=alert(1)>"


def spectra() -> pd.DataFrame:
    frames = []
    for ratio in RATIOS:
        share = np.arange(1.0, 9.0) ** -(1 + (0 if math.isnan(ratio) else ratio))
        share /= share.sum()
        energy = np.cumsum(share**2) / np.sum(share**2)
        frame = {"ratio": ratio, "index": np.arange(1, 9), "share": share, "cumulative_energy": energy}
        frames.append(pd.DataFrame({**frame, "low": 0.9 * share, "high": 1.1 * share}))
    return pd.concat(frames)


def points() -> pd.DataFrame:
    rows = [
        (task, protocol, ratio, base - 0.1 * np.nan_to_num(ratio, nan=3.0), 4.9 + np.nan_to_num(ratio))
        for task, protocol, base in [("icons", "ID", 0.9), ("emoji", "ID", 0.9), ("icons", "OOD", 0.8)]
        for ratio in RATIOS
    ]
    return pd.DataFrame(rows, columns=["task", "protocol", "ratio", "accuracy", "sve"])


def summary(random_accuracy: float = 0.2) -> pd.DataFrame:
    rows = []
    for task, protocol in [("icons", "ID"), ("emoji", "ID"), ("icons", "OOD")]:
        for step, method in enumerate(["NMTune", "LP", "MLP"]):
            for ratio in RATIOS:
                mean = random_accuracy if math.isnan(ratio) else 0.8 + 0.01 * step - 0.1 * ratio
                rows.append((task, protocol, method, ratio, mean, mean - 0.01, mean + 0.01))
    return pd.DataFrame(rows, columns=["task", "protocol", "method", "ratio", "mean", "low", "high"])


def differences() -> pd.DataFrame:
    frame = summary()
    frame = frame[frame["ratio"].notna() & (frame["method"] != "NMTune")]
    return frame.assign(comparison="NMTune − " + frame["method"])


def drawn(figure: go.Figure, mode: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == mode]


def in_legend(figure: go.Figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.showlegend]


FIGURES = [
    (plots.singular_spectrum, spectra, ["ratio", "index", "share", "cumulative_energy"]),
    (plots.accuracy_against_ratio, summary, ["task", "protocol", "method", "ratio", "mean", "low", "high"]),
    (plots.method_comparison, summary, ["task", "protocol", "method", "ratio", "mean", "low", "high"]),
    (plots.method_differences, differences, ["task", "protocol", "comparison", "ratio", "mean", "low", "high"]),
    (
        lambda frame, title: plots.metric_against_accuracy(frame, "sve", title=title),
        points,
        ["task", "protocol", "ratio", "accuracy", "sve"],
    ),
]


@pytest.mark.parametrize(("draw", "make", "columns"), FIGURES)
def test_missing_columns_are_listed_and_empty_tables_refused(draw, make, columns):
    frame = make()
    for column in columns:
        with pytest.raises(InvalidInputError, match=rf"expected the columns .*missing: {column} \(got: "):
            draw(frame.drop(columns=column), title="t")
    with pytest.raises(InvalidInputError, match="at least one row, got an empty table"):
        draw(frame.iloc[:0], title="t")


@pytest.mark.parametrize(("draw", "make", "columns"), FIGURES)
def test_figures_are_plain_serialisable_and_show_data_as_text(draw, make, columns):
    frame = make()
    for column in {"task", "method", "comparison"} & set(columns):
        frame[column] = frame[column].replace(frame[column].iloc[0], HOSTILE)
    figure = draw(frame, title=f"Finding about {HOSTILE}")
    assert type(figure) is go.Figure
    text = json.dumps(json.loads(figure.to_json()))
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert figure.layout.template.layout.plot_bgcolor == "white"


def test_a_long_title_is_wrapped_and_given_room():
    short = plots.singular_spectrum(spectra(), title="SVE rises")
    long = plots.singular_spectrum(spectra(), title="SVE rises with noise " * 12)
    lines = long.layout.title.text.split("<br>")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 90
    assert long.layout.height - short.layout.height == long.layout.margin.t - short.layout.margin.t == 50


def test_noise_is_named_alike_whether_of_labels_or_captions():
    shown = plots.accuracy_against_ratio(summary(), title="t"), plots.method_comparison(summary(), title="t")
    texts = {axis.title.text for figure in shown for axis in (*figure.select_xaxes(), *figure.select_yaxes())}
    assert texts - {None} == {"noise in pre-training", "accuracy (fraction)"}


# ---- the look


def luminance(color: str) -> float:
    channels = np.array(unlabel_rgb(color)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_get_lighter_with_the_ratio_and_stay_visible_on_white():
    shades = [luminance(ratio_color(ratio)) for ratio in [0, 0.05, 0.1, 0.2, 0.3, 0.5]]
    assert shades == sorted(shades)
    assert min(np.diff(shades)) > 0.01
    assert 1.05 / (shades[-1] + 0.05) > 2.3  # contrast with white


@given(ratio=st.floats(0, 1))
def test_every_ratio_has_a_colour_and_those_above_a_half_the_same(ratio):
    assert ratio_color(ratio).startswith("rgb(")
    assert ratio_color(max(ratio, 0.5)) == ratio_color(0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 30, math.inf])
def test_a_ratio_that_is_no_fraction_is_refused(ratio):
    with pytest.raises(InvalidInputError, match="give it as a fraction"):
        ratio_color(ratio)


def test_a_ratio_has_one_colour_in_all_figures():
    spectrum = plots.singular_spectrum(spectra(), title="t")
    metric = plots.metric_against_accuracy(points(), "sve", title="t")
    pairs = plots.method_differences(differences(), title="t")
    colors = [
        {trace.line.color for trace in drawn(spectrum, "lines") if trace.name == "10 %" and trace.line.color},
        {trace.marker.color for trace in drawn(metric, "markers") if trace.name == "10 %"},
        {trace.marker.color for trace in drawn(pairs, "markers") if trace.name == "10 %"},
        {trace.error_x.color for trace in drawn(pairs, "markers") if trace.name == "10 %"},
    ]
    assert colors == [{ratio_color(0.1)}] * 4


def test_legends_are_ordered_by_ratio():
    assert in_legend(plots.singular_spectrum(spectra(), title="t")) == LABELS
    assert in_legend(plots.metric_against_accuracy(points(), "sve", title="t")) == LABELS
    assert in_legend(plots.method_differences(differences(), title="t")) == LABELS[:3]
    assert in_legend(plots.accuracy_against_ratio(summary(), title="t")) == ["LP", "MLP", "NMTune"]


def test_methods_have_their_own_marks_and_others_get_spare_ones():
    marks = method_marks(["ridge", "NMTune", "LP", "kNN", "MLP"])
    assert list(marks) == ["LP", "MLP", "NMTune", "kNN", "ridge"]
    assert len({color for color, _ in marks.values()}) == len({symbol for _, symbol in marks.values()}) == 5


@given(text=st.text())
def test_escaped_text_holds_no_markup(text):
    escaped = as_text(text)
    assert "<" not in escaped
    assert ">" not in escaped
    assert wrap(text, 20).replace("<br>", "").count("<") == 0


def test_labels_of_ratios():
    assert [ratio_label(ratio) for ratio in [0.0, 0.05, 0.125, 1.0, NAN]] == [
        "0 %", "5 %", "12.5 %", "100 %", "random init",
    ]  # fmt: skip


# ---- the figures


def test_spectrum_draws_the_shares_on_a_log_scale_with_bands():
    figure = plots.singular_spectrum(spectra(), title="t")
    frame = spectra()
    left = [trace for trace in drawn(figure, "lines") if trace.fill is None and trace.xaxis == "x"]
    right = [trace for trace in drawn(figure, "lines") if trace.fill is None and trace.xaxis == "x2"]
    assert [trace.name for trace in left] == [trace.name for trace in right] == LABELS
    part = frame[frame["ratio"] == 0.1]
    np.testing.assert_array_equal(left[1].y, part["share"])
    np.testing.assert_array_equal(right[1].y, part["cumulative_energy"])
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis2.type is None
    assert left[-1].line.dash == "dash"
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 4
    assert not any(band.showlegend for band in bands)
    assert "i = %{x}" in left[0].hovertemplate
    assert left[0].hovertemplate.startswith("0 %")
    np.testing.assert_array_equal(left[0].x, np.arange(1, 9))


def test_spectrum_without_bands_and_with_repeated_rows():
    figure = plots.singular_spectrum(spectra().drop(columns=["low", "high"]), title="t")
    assert not any(trace.fill for trace in figure.data)
    with pytest.raises(InvalidInputError, match=r"one row per ratio and index.*average the seeds first"):
        plots.singular_spectrum(pd.concat([spectra(), spectra()]), title="t")


def test_metric_joins_each_data_set_in_ratio_order_and_names_it_at_the_end():
    figure = plots.metric_against_accuracy(points(), "sve", title="t")
    lines = drawn(figure, "lines")
    assert len(lines) == 3
    for line in lines:
        np.testing.assert_allclose(line.x, [0, 0.1, 0.3])  # change of SVE from the lowest ratio
        np.testing.assert_allclose(line.y, [0, -0.01, -0.03])
    names = [note.text for note in figure.layout.annotations]
    assert sorted(names) == ["ID", "OOD", "emoji", "icons", "icons"]
    ends = [note for note in figure.layout.annotations if note.text in ("emoji", "icons") and note.xref == "x"]
    assert [note.x for note in ends] == pytest.approx([0.3, 0.3])
    assert ends[0].y != ends[1].y  # both lines end at one point: the names are pushed apart
    hovers = [trace for trace in drawn(figure, "markers") if trace.name == "10 %"]
    assert list(hovers[0].text) == ["ID · icons", "ID · emoji"]


def test_metric_shows_the_values_at_a_click():
    figure = plots.metric_against_accuracy(points(), "sve", title="t")
    change, values = figure.layout.updatemenus[0].buttons
    assert (change.label, values.label) == ("Change from clean", "Values")
    for trace, x, y in zip(figure.data, change.args[0]["x"], change.args[0]["y"], strict=True):
        np.testing.assert_array_equal(trace.x, x)
        np.testing.assert_array_equal(trace.y, y)
    lines = [place for place, trace in enumerate(figure.data) if trace.mode == "lines"]
    np.testing.assert_allclose(values.args[0]["x"][lines[0]], [4.9, 5.0, 5.2])
    np.testing.assert_allclose(values.args[0]["y"][lines[0]], [0.9, 0.89, 0.87])
    assert values.args[1]["xaxis.title.text"] == "SVE (nats)"
    assert {note["text"] for note in values.args[1]["annotations"]} >= {"ID", "OOD", "icons", "emoji"}


def test_accuracy_has_a_panel_per_task_a_line_per_method_and_intervals():
    figure = plots.accuracy_against_ratio(summary(), title="t")
    headings = [note.text.split("  ")[0] for note in figure.layout.annotations]
    assert headings == ["ID · emoji", "ID · icons", "OOD · icons"]
    lines = drawn(figure, "lines+markers")
    assert len(lines) == 9
    assert [line.marker.symbol for line in lines[:3]] == ["circle", "square", "diamond"]
    np.testing.assert_allclose(lines[2].y, [0.8, 0.79, 0.77])
    np.testing.assert_allclose(lines[2].error_y.array, [0.01] * 3)
    np.testing.assert_allclose(lines[1].x, [0.0, 0.1, 0.3])
    assert abs(np.asarray(lines[0].x) - np.asarray(lines[1].x)).max() < 0.01  # apart, but at the same tick
    assert list(figure.layout.xaxis.ticktext) == ["0 %", "10 %", "30 %"]


def test_the_random_baseline_is_a_line_only_where_it_leaves_the_others_room():
    far = plots.accuracy_against_ratio(summary(0.2), title="t")
    near = plots.accuracy_against_ratio(summary(0.75), title="t")
    assert drawn(far, "lines") == []
    assert [trace.line.dash for trace in drawn(near, "lines")] == ["dot"] * 3
    np.testing.assert_array_equal(drawn(near, "lines")[0].y, [0.75, 0.75])
    assert all("random init 0.200" in note.text for note in far.layout.annotations)
    none = plots.accuracy_against_ratio(summary()[summary()["ratio"].notna()], title="t")
    assert not any("random" in note.text for note in none.layout.annotations)


def test_methods_are_compared_side_by_side_without_the_random_baseline():
    figure = plots.method_comparison(summary(), title="t")
    traces = drawn(figure, "markers")
    assert len(traces) == 9
    places = np.array([trace.y for trace in traces[:3]])
    np.testing.assert_array_equal(np.round(places.mean(axis=0)), [2, 0, 1])  # rows of the axis, as in the table
    assert np.all(np.diff(places, axis=0) > 0.1)  # LP above MLP above NMTune, never on top of each other
    assert np.abs(places - [2, 0, 1]).max() < 0.5
    assert list(figure.layout.yaxis.ticktext) == ["0 %", "10 %", "30 %"]
    assert in_legend(figure) == ["LP", "MLP", "NMTune"]


def test_a_method_that_one_task_lacks_is_still_in_the_legend_once():
    frame = summary()
    frame = frame[(frame["method"] != "LP") | (frame["protocol"] == "OOD")]
    for draw in (plots.method_comparison, plots.accuracy_against_ratio):
        assert sorted(in_legend(draw(frame, title="t"))) == ["LP", "MLP", "NMTune"]


def test_differences_have_a_panel_per_comparison_and_a_zero_line():
    figure = plots.method_differences(differences(), title="t")
    assert [note.text for note in figure.layout.annotations] == ["NMTune − LP", "NMTune − MLP"]
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(0, 0), (0, 0)]
    assert list(figure.layout.yaxis.ticktext) == ["ID · emoji", "ID · icons", "OOD · icons"]
    assert len(drawn(figure, "markers")) == 6


def test_confusion_shows_shares_of_rows_and_keeps_the_diagonal_apart():
    figure = plots.confusion_matrix(np.array([[8, 2], [0, 0]]), ["cat", HOSTILE], title="t")
    kept, moved = figure.data
    np.testing.assert_array_equal(kept.z, [[0.8, NAN], [NAN, 0.0]])
    np.testing.assert_array_equal(moved.z, [[NAN, 0.2], [0.0, NAN]])
    assert (moved.zmin, moved.zmax) == (0, 0.2)
    assert moved.x[1] == "&lt;img src=x onerror=alert(1)&gt;"
    assert figure.layout.xaxis.ticktext[1] == "&lt;img src=x onerror=…"
    assert plots.confusion_matrix(np.eye(3), list("abc"), title="t").data[1].zmax == 1.0


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        (np.eye(3), ["a", "b"]),
        (np.ones((2, 3)), ["a", "b"]),
        (np.eye(2), ["a", "a"]),
        (np.eye(1), ["a"]),
        (-np.eye(2), ["a", "b"]),
        (np.full((2, 2), NAN), ["a", "b"]),
        (np.full((2, 2), math.inf), ["a", "b"]),
    ],
)
def test_a_wrong_confusion_matrix_is_refused(matrix, names):
    with pytest.raises(InvalidInputError, match="Expected K ≥ 2 distinct class names and a K×K matrix"):
        plots.confusion_matrix(matrix, names, title="t")


def test_the_gallery_shows_the_images_themselves_with_their_titles():
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    figure = plots.noise_gallery(images, [f"{HOSTILE} → cat"] + ["dog → cat"] * 9, title="t")
    assert len(figure.data) == 10
    encoded = figure.data[9].source.removeprefix("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))), images[9])
    captions = [note.text for note in figure.layout.annotations]
    assert captions[0].replace("<br>", " ") == "&lt;img src=x onerror=alert(1)&gt; → cat"
    assert captions[1] == "dog → cat"
    assert len({note.xref for note in figure.layout.annotations}) == 10


@pytest.mark.parametrize(
    ("images", "titles", "message"),
    [
        (np.zeros((2, 32, 32), np.uint8), ["a", "b"], "Expected uint8 images of shape"),
        (np.zeros((2, 32, 32, 3)), ["a", "b"], "got float64"),
        (np.zeros((0, 32, 32, 3), np.uint8), [], "n ≥ 1"),
        (np.zeros((2, 32, 32, 3), np.uint8), ["a"], "one title per image, got 1 for 2 images"),
    ],
)
def test_wrong_gallery_input_is_refused(images, titles, message):
    with pytest.raises(InvalidInputError, match=message):
        plots.noise_gallery(images, titles, title="t")
