"""Figures of downstream evaluation draw the numbers that they are given, and name what is missing."""

import itertools

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import InvalidInputError
from nml_kit.plots.evaluation import accuracy_against_share, choice_shares, method_lines, variant_effects

COLUMNS = ["task", "protocol", "ratio", "method", "fraction"]


def summary() -> pd.DataFrame:
    cases = itertools.product(["icons"], ["ID", "OOD"], [0.0, 0.3, np.nan], ["LP", "NMTune"], [0.1, 1.0])
    table = pd.DataFrame(list(cases), columns=COLUMNS)
    table["mean"] = np.arange(len(table)) / 100
    return table.assign(low=table["mean"] - 0.01, high=table["mean"] + 0.02)


def test_a_line_for_each_ratio_and_no_random_network():
    probe = summary().query("method == 'LP'")
    figure = accuracy_against_share(probe, "fraction", title="t")
    assert [trace.name for trace in figure.data] == ["0 %", "30 %"] * 2
    expected = probe.query("protocol == 'OOD' and ratio == 0.3")["mean"]
    np.testing.assert_array_equal(figure.data[3].y, expected)
    assert list(figure.layout.xaxis.ticktext) == ["10 %", "100 %"]


def test_a_line_for_each_method_in_a_panel_for_each_ratio():
    figure = method_lines(summary(), "fraction", title="t")
    assert [note.text for note in figure.layout.annotations] == ["ID · 0 %", "ID · 30 %", "OOD · 0 %", "OOD · 30 %"]
    assert [trace.name for trace in figure.data] == ["LP", "NMTune"] * 4
    np.testing.assert_array_equal(figure.data[0].x, [0.1, 1.0])
    assert sum(trace.showlegend for trace in figure.data) == 2


def test_each_protocol_is_in_the_legend_once_wherever_it_first_occurs():
    rows = [("ID · a", "ridge", "ID", 0.1), ("OOD · b", "<b>", "OOD", -0.1), ("OOD · b", "ridge", "OOD", 0.2)]
    table = pd.DataFrame(rows, columns=["group", "method", "protocol", "mean"])
    figure = variant_effects(table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1), title="t")
    assert [(trace.name, trace.showlegend) for trace in figure.data] == [("ID", True), ("OOD", True)]
    np.testing.assert_array_equal(figure.data[1].x, [-0.1, 0.2])
    assert [list(trace.y) for trace in figure.data] == [[0], [0, 1]]  # alone in its panel: on its row
    assert list(figure.layout.yaxis2.ticktext) == ["&lt;b&gt;", "ridge"]


def test_bars_are_the_shares_of_the_choices():
    rows = [("kNN", "kNN 1", True), ("kNN", "kNN 5", False), ("kNN", "kNN 1", False), ("kNN", "kNN 5", True),
            ("kNN", "kNN 1", True), ("kNN", "kNN 5", False)]  # fmt: skip
    figure = choice_shares(pd.DataFrame(rows, columns=["method", "candidate", "chosen"]), title="t")
    np.testing.assert_allclose(figure.data[0].x, [2 / 3, 1 / 3])
    assert list(figure.data[0].y) == ["kNN 1", "kNN 5"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda table: accuracy_against_share(table, "label_noise", title="t"),
        lambda table: method_lines(table, "label_noise", title="t"),
        lambda table: variant_effects(table, title="t"),
        lambda table: choice_shares(table, title="t"),
    ],
)
def test_missing_columns_are_named(draw):
    with pytest.raises(InvalidInputError, match=r"missing: (label_noise|group|candidate)"):
        draw(summary())
