"""Figures of spectra: what they draw, on which scale, and what they refuse."""

import numpy as np
import pandas as pd
import pytest

from nml_kit import plots
from nml_kit.errors import InvalidInputError
from nml_kit.plots.theme import ratio_color
from nml_kit.spectrum import family_spectra, family_table
from tests.plots.tables import LABELS, TRAINED, atlas, drawn, in_legend, panel_names, sizes, spectra, values


def test_spectrum_draws_the_shares_on_a_log_scale_with_bands():
    figure = plots.singular_spectrum(spectra(), title="t")
    left, right = ([trace for trace in drawn(figure, "lines") if trace.xaxis == axis] for axis in ("x", "x2"))
    assert [trace.name for trace in left] == [trace.name for trace in right] == LABELS
    part = spectra().query("ratio == 0.1")
    np.testing.assert_array_equal(left[1].y, part["share"])
    np.testing.assert_array_equal(right[1].y, part["cumulative_energy"])
    np.testing.assert_array_equal(left[0].x, np.arange(1, 9))
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis2.type is None
    assert left[-1].line.dash == "dot"
    bands = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(bands) == 4
    assert not any(band.showlegend for band in bands)


def test_spectrum_without_bands_and_with_repeated_rows():
    figure = plots.singular_spectrum(spectra().drop(columns=["low", "high"]), title="t")
    assert not any(trace.fill for trace in figure.data)
    with pytest.raises(InvalidInputError, match=r"one row per ratio and index.*average the seeds first"):
        plots.singular_spectrum(pd.concat([spectra(), spectra()]), title="t")


def test_metrics_show_each_seed_and_the_mean():
    figure = plots.metrics_against_ratio(values(), title="t")
    sve = values().query("metric == 'sve'")
    assert list(figure.data[0].y) == sve.query("seed == 0")["value"].tolist()
    assert list(figure.data[2].y) == pytest.approx(sve.groupby("ratio")["value"].mean().tolist())
    assert len(figure.data) == 9
    assert panel_names(figure)[0] == "SVE (nats)"


def test_sizes_are_in_order_whatever_the_order_of_the_rows():
    line = drawn(plots.metric_against_size(sizes(), title="t"), "lines+markers")[0]
    assert (list(line.x), list(line.y)) == ([100, 200, 400], [2.0, 3.0, 1.0])
    assert line.line.color == ratio_color(0.0)


def test_atlas_has_a_panel_per_name_and_one_scale():
    figure = plots.spectra_atlas(atlas(), title="t")
    assert len(figure.data) == 6
    assert panel_names(figure)[0] == "ID · icons"
    assert len({axis.range for axis in figure.select_yaxes()}) == 1


def test_plane_bounds_the_points_by_the_families():
    points = pd.DataFrame({"ratio": TRAINED, "lsvr": [1.0, 1.1, 1.2], "sve": [2.0, 2.1, 2.2]})
    measured = atlas().query("panel == 'ID · icons'")
    families, shares = family_table(16), family_spectra(1.0, 16)
    figure = plots.sve_lsvr_plane(families, shares, points, measured, title="t")
    assert in_legend(figure) == [*families["family"].unique(), *LABELS[:3]]
    assert [float(trace.y[0]) for trace in drawn(figure, "markers")] == [2.0, 2.1, 2.2]
    with pytest.raises(InvalidInputError, match="missing: sve"):
        plots.sve_lsvr_plane(families, shares, points.drop(columns="sve"), measured, title="t")


def test_a_spectrum_of_ones_own_lies_among_the_known():
    known = atlas().query("panel == 'ID · icons'").assign(position=lambda rows: rows["index"] / 5, height=1.0)
    figure = plots.spectrum_among_known(known.query("ratio == 0").assign(height=2.0), known, name="<mine>", title="t")
    assert in_legend(figure) == [*LABELS[:3], "&lt;mine&gt;"]
    assert list(figure.data[-1].y) == [2.0] * 5


def test_the_change_of_a_pair_is_relative_to_the_first():
    first, second = (pd.Series(shares, index=[1, 2]) for shares in ([0.8, 0.2], [0.6, 0.4]))
    figure = plots.paired_spectra(first, second, ("one", "<two>"), title="t")
    assert in_legend(figure) == ["one", "&lt;two&gt;"]
    [change] = [trace for trace in figure.data if trace.yaxis == "y2" and trace.name == "&lt;two&gt;"]
    np.testing.assert_allclose(change.y, [-0.25, 1.0])
