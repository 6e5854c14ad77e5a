"""Figures on pages and as files: narrow if their texts fit a phone, images as a reader of the format sees them."""

import json
import os
import shutil
import subprocess
import sys

import kaleido
import nbformat
import plotly.graph_objects as go
import pytest
from PIL import Image
from plotly.subplots import make_subplots

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.pages import PLOTLY_MIME, export_html, save_figure, save_figures
from nml_kit.pages.figures import narrowest_width
from nml_kit.plots import add_control, finish

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
    figure = json.loads(go.Figure(BARS).to_json())
    output = nbformat.v4.new_output("display_data", {"application/vnd.plotly.v1+json": figure})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    page = export_html(tmp_path / "n.ipynb", tmp_path / "n.html")
    assert "min-width:300px" in page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    """One for all figures of this file: each start takes seconds."""
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium, which draws the figures")
    kaleido.start_sync_server(silence_warnings=True)
    yield
    kaleido.stop_sync_server(silence_warnings=True)


@pytest.fixture
def figure() -> go.Figure:
    figure = finish(go.Figure(go.Scatter(y=[1, 3, 2])), "A finding", height=300, legend="Lines")
    view = go.Figure(figure).update_yaxes(type="log")
    return add_control(figure, {"linear": figure, "MENU": view}, "menu")


def test_a_png_has_the_size_of_the_figure_and_none_of_its_menus(browser, figure, tmp_path):
    saved = save_figure(figure, tmp_path / "one.png", width=500, scale=2)
    with Image.open(saved) as image:
        assert image.size == (1000, 2 * figure.layout.meta["without_controls"]["height"])
        assert len(image.convert("RGB").getcolors(10**6)) > 10
    text = save_figure(figure, tmp_path / "one.svg").read_text(encoding="utf-8")
    assert "A finding" in text
    assert "MENU" not in text
    assert figure.layout.updatemenus  # its own controls stay
    assert save_figure(figure, tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")


def test_every_figure_of_a_notebook_becomes_a_file(browser, figure, tmp_path):
    outputs = [nbformat.v4.new_output("display_data", {PLOTLY_MIME: figure.to_plotly_json()}) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("draw()", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    paths = save_figures(tmp_path / "n.ipynb", "svg")
    assert [path.name for path in paths] == ["n-1.svg", "n-2.svg"]
    assert all("A finding" in path.read_text(encoding="utf-8") for path in paths)


def test_bad_input_and_a_missing_browser_are_explained(figure, tmp_path):
    with pytest.raises(InvalidInputError, match=r"ends in \.png, \.svg, \.pdf, got 'one\.bmp'"):
        save_figure(figure, tmp_path / "one.bmp")
    with pytest.raises(DataFileError, match="Expected a Jupyter notebook"):
        save_figures(tmp_path / "none.ipynb", "png")
    code = (
        "import plotly.graph_objects as go; from nml_kit import save_figure; from nml_kit.errors import NMLError\n"
        "try: save_figure(go.Figure(), 'one.png')\n"
        "except NMLError as error: print(error)"
    )
    environment = os.environ | {"BROWSER_PATH": str(tmp_path / "none")}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Expected kaleido and a Chromium or Chrome that it finds" in run.stdout, run.stderr
    assert list(tmp_path.iterdir()) == []
