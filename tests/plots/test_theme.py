"""The look: colours of ratios and marks of methods tell apart, texts are texts."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.colors import unlabel_rgb

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.plots import as_text
from nml_kit.plots.theme import method_marks, ratio_color, wrap
from tests.plots.tables import DIFFERENCES, LABELS, differences, drawn, in_legend, points, spectra, summary


def luminance(color: str) -> float:
    channels = np.array(unlabel_rgb(color)) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_get_lighter_with_the_ratio_and_stay_visible_on_white():
    shades = [luminance(ratio_color(ratio)) for ratio in [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.6, 0.9]]
    assert min(b - a for a, b in pairwise(shades)) > 0.01
    assert 1.05 / (shades[-1] + 0.05) > 2.3  # contrast with white


@given(ratio=st.floats(0, 1))
def test_every_ratio_has_a_colour(ratio):
    assert ratio_color(ratio).startswith("rgb(")


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 30, math.inf])
def test_a_ratio_that_is_no_fraction_is_refused(ratio):
    with pytest.raises(InvalidInputError, match="give it as a fraction"):
        ratio_color(ratio)


def test_a_ratio_has_one_colour_and_one_place_in_the_legend_of_all_figures():
    spectrum = plots.singular_spectrum(spectra(), title="t")
    metric = plots.metric_against_accuracy(points(), "sve", title="t")
    pairs = plots.forest_plot(differences(), **DIFFERENCES, title="t")
    colors = [
        {trace.line.color for trace in drawn(spectrum, "lines") if trace.name == "10 %"},
        {trace.marker.color for trace in drawn(metric, "markers") if trace.name == "10 %"},
        {trace.marker.color for trace in drawn(pairs, "markers") if trace.name == "10 %"},
        {trace.error_x.color for trace in drawn(pairs, "markers") if trace.name == "10 %"},
    ]
    assert colors == [{ratio_color(0.1)}] * 4
    assert [in_legend(figure) for figure in (spectrum, metric, pairs)] == [LABELS, LABELS, LABELS[:3]]
    assert in_legend(plots.accuracy_lines(summary(), title="t")) == ["LP", "MLP", "NMTune"]


def test_methods_have_their_own_marks_however_many_there_are():
    marks = method_marks(["ridge", "NMTune", "LP", "kNN", "MLP"])
    assert list(marks) == ["LP", "MLP", "NMTune", "kNN", "ridge"]
    assert len({mark.color for mark in marks.values()}) == len({mark.symbol for mark in marks.values()}) == 5
    many = method_marks([*marks, *map(str, range(20))])
    assert len({mark[:2] for mark in many.values()}) == 25
    assert {name: many[name] for name in ("LP", "MLP", "NMTune")} == {name: marks[name] for name in list(marks)[:3]}


@given(text=st.text())
def test_escaped_text_holds_no_markup(text):
    assert not {"<", ">"} & set(as_text(text))
    assert wrap(text, 20).replace("<br>", "").count("<") == 0


def test_labels_of_ratios():
    labels = ["0 %", "5 %", "12.5 %", "100 %", "random init"]
    assert [ratio_label(ratio) for ratio in [0.0, 0.05, 0.125, 1.0, math.nan]] == labels
