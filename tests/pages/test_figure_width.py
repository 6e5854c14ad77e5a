"""Figures that fit a phone are drawn as narrow as it is; those whose texts would not fit scroll."""

import json

import plotly.graph_objects as go
import pytest
from plotly.subplots import make_subplots

from nml_kit.pages import export_html
from nml_kit.pages.figure_width import narrowest_width

BARS = go.Bar(x=[1, 2], y=["icons", "emoji"], orientation="h")


def width(figure: go.Figure) -> int:
    content = json.loads(figure.to_json())
    return narrowest_width(content["data"], content["layout"])


def test_one_column_of_short_texts_fits():
    rows = make_subplots(2, 1, subplot_titles=["ID", "OOD"])
    rows.add_trace(BARS, 1, 1).add_trace(BARS, 2, 1)
    assert width(go.Figure(BARS)) == width(rows) == width(go.Figure()) == 300


@pytest.mark.parametrize(
    "figure",
    [
        make_subplots(1, 2).add_trace(BARS, 1, 1).add_trace(BARS, 1, 2),
        go.Figure(go.Bar(x=[1], y=["a label of a row that is long"], orientation="h")),
        go.Figure([go.Scatter(x=[1], y=[1], name=f"{name} is a name that is long") for name in "abcd"]),
        go.Figure(BARS).add_annotation(text="<b>x</b> " * 40),
        go.Figure(go.Heatmap(z=[[1]])),
    ],
    ids=["columns", "labels", "legend", "note", "heatmap"],
)
def test_what_does_not_fit_scrolls(figure):
    assert width(figure) == 680


def test_tags_and_lines_do_not_count():
    assert width(go.Figure(BARS).add_annotation(text="<span>short</span><br>" * 20)) == 300


@pytest.mark.parametrize(
    "layout",
    [
        {"xaxis": 1, "annotations": {}},
        {"xaxis": {"domain": [None]}},
        {"xaxis2": {"domain": [10**400]}},
        {"annotations": [1, {"text": None}]},
    ],
)
def test_layouts_of_others_are_survived(layout):
    assert narrowest_width([1, {"y": {"bdata": ""}}], layout) == 300


def test_a_page_says_the_width(tmp_path):
    import nbformat

    figure = json.loads(go.Figure(BARS).to_json())
    output = nbformat.v4.new_output("display_data", {"application/vnd.plotly.v1+json": figure})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    page = export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    assert "min-width:300px" in page.read_text(encoding="utf-8")
