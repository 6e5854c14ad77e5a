"""The page is checked as text, and opened in Chromium without a network where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from plotly.offline import get_plotlyjs

from nml_kit import plots
from nml_kit.errors import DataFileError
from nml_kit.pages import export_html

SCRIPT = "<script>document.title = 'attacked'</script>"
IMAGE = "<img src=x onerror=\"document.title = 'attacked'\">"


def figure_output(figure: go.Figure) -> nbformat.NotebookNode:
    return new_output("display_data", {"application/vnd.plotly.v1+json": figure.to_plotly_json(), "text/plain": "F"})


def write_notebook(path: Path, *outputs: nbformat.NotebookNode, heading: str = "# A question") -> Path:
    cell = new_code_cell("print('kept in view')", execution_count=1, outputs=list(outputs))
    nbformat.write(new_notebook(cells=[new_markdown_cell(heading), cell]), path)
    return path


def stderr(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stderr", text=text)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with two figures, a table, a warning and progress bars; class names and captions are hostile."""
    root = tmp_path_factory.mktemp("page")
    matrix = plots.confusion_matrix(np.array([[9, 1], [2, 8]]), [IMAGE, "cat"], title=f"What was flipped: {SCRIPT}")
    gallery = plots.noise_gallery(np.zeros((1, 32, 32, 3), np.uint8), [f"{IMAGE} → {SCRIPT}"], title="Flipped images")
    table = pd.DataFrame({"class": [SCRIPT], "share": [0.5]})
    raw = pd.DataFrame({"class": [SCRIPT + IMAGE]}).style  # pandas' Styler does not escape
    notebook = write_notebook(
        root / "n.ipynb",
        figure_output(matrix),
        figure_output(gallery),
        new_output("execute_result", {"text/html": table._repr_html_()}, execution_count=1),
        new_output("display_data", {"text/html": raw.to_html()}),
        new_output("display_data", {"text/html": f'<a href="javascript:x()" onclick="x()">link</a>{SCRIPT}'}),
        new_output("display_data", {"application/javascript": "document.title = 'attacked'"}),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Slider()"}),
        new_output("stream", name="stdout", text="SVE rises from 4.91 to 5.02\n" + SCRIPT),
        stderr(
            "heads:  50%|█████     | 1/2 [00:01<00:01]\rheads: 100%|██████████| 2/2 [00:02<00:00]\n"
            "12it [00:03, 4.1it/s]\ninner:   0%|          | 0/2\x1b[A\n          \x1b[A"
        ),
        stderr("UserWarning: few seeds\n"),
        heading=f"# Does noise matter? {SCRIPT}",
    )
    return export_html(notebook, root / "n.html")


@pytest.fixture(scope="module")
def body(page):
    """The page's text after plotly.js."""
    return page.read_text(encoding="utf-8").split("</head>", 1)[1]


def test_plotly_js_is_inside_exactly_once(page):
    text = page.read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()[:2000]) == 1
    assert 4e6 < page.stat().st_size < 6e6


def test_a_page_without_figures_is_small(tmp_path):
    html = export_html(write_notebook(tmp_path / "n.ipynb"), tmp_path / "n.html")
    assert html.stat().st_size < 50_000


def test_each_figure_is_drawn(body):
    contents = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', body)]
    assert [content["data"][0]["type"] for content in contents] == ["heatmap", "image"]
    assert all(content["config"]["responsive"] for content in contents)
    assert body.count('<div class="nml-figure" role="img" aria-label="') == 2
    assert body.count('role="img" aria-label="') == 2
    assert body.count("Plotly.newPlot(") == 1


def test_nothing_is_loaded_from_elsewhere(page, body):
    assert re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//[^"'>\s]*""", body) == []
    head = page.read_text(encoding="utf-8").split("</head>", 1)[0]
    assert re.findall(r"<(?:link|script)\b[^>]*(?:src|href)=", head) == []
    assert "default-src 'none'" in head
    assert "@import" not in body
    assert "sendChartToCloud" in body  # among the buttons that are removed


def test_scripts_in_data_show_as_text(page, body):
    scripts = re.findall(r"<script([^>]*)>(.{0,40})", body, re.DOTALL)
    assert [attributes for attributes, _ in scripts[:2]] == [' type="application/json"'] * 2
    (nonce,) = re.findall(r"script-src 'nonce-(\w{64})'", page.read_text(encoding="utf-8"))
    assert [attributes for attributes, _ in scripts[2:]] == [f' nonce="{nonce}"']
    assert "<img src=x" not in body
    assert "javascript:" not in body
    assert "onclick" not in body
    assert "&lt;script&gt;document.title" in body
    head = page.read_text(encoding="utf-8").split("</title>", 1)[0]
    assert head.endswith("<title>Does noise matter? &lt;script&gt;document.title = &#39;attacked&#39;&lt;/script&gt;")


def test_equal_notebooks_give_equal_pages(page):
    again = export_html(page.with_suffix(".ipynb"), page.with_name("again.html"))
    assert again.read_bytes() == page.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        {"data": [], "layout": {"title": SCRIPT, "height": '1px"></div>' + SCRIPT}},
        {"data": 3, "layout": None},
        {"layout": {"title": {"text": None}, "height": 1e9}},
        [SCRIPT],
    ],
)
def test_a_figure_that_plotly_did_not_make_is_no_way_in(tmp_path, content):
    notebook = write_notebook(
        tmp_path / "n.ipynb", new_output("display_data", {"application/vnd.plotly.v1+json": content})
    )
    body = export_html(notebook, tmp_path / "n.html").read_text(encoding="utf-8").split("</head>", 1)[1]
    assert "<script>" not in body
    assert 'style="height:450px;min-width:300px"' in body


def test_images_are_inside_and_links_lead_to_the_page_or_the_web(tmp_path):
    text = (
        '<img src="http://a.example/x.png"><img src="x.png"><img src="data:image/png;base64,AAAA">'
        '<a href="other.ipynb">a</a><a href="data:text/html,x">b</a><a href="#place">c</a><a href="https://b.example">d</a>'
    )
    notebook = write_notebook(tmp_path / "n.ipynb", new_output("display_data", {"text/html": text}))
    body = export_html(notebook, tmp_path / "n.html").read_text(encoding="utf-8").split("</head>", 1)[1]
    assert re.findall(r'(?:src|href)="([^"]*)"', body) == ["data:image/png;base64,AAAA", "#place", "https://b.example"]


def test_tables_texts_and_warnings_are_kept_and_progress_bars_are_not(body):
    assert "<th>share</th>" in body
    assert "SVE rises from 4.91 to 5.02" in body
    assert "UserWarning: few seeds" in body
    assert "%|" not in body
    assert "12it" not in body
    assert "\x1b" not in body
    assert "Slider()" not in body
    assert "vertical-align: top;\n    }" not in body  # pandas' style block, which would show as text


def table_html(*, style: bool) -> str:
    """A table of an index, numbers, and texts, as pandas writes it."""
    frame = pd.DataFrame(
        {
            "n": [3, 40],
            "difference": ["+0.01 [−0.02, 0.04]", "–"],
            "ratio": ["5 %", "random init"],
            "why": ["w" * 50, "1"],
        },
        index=pd.Index(["LP", "7"], name="method"),
    )
    return (
        frame.style.set_table_styles([{"selector": "td", "props": "color: red"}]).to_html()
        if style
        else frame.to_html()
    )


@pytest.mark.parametrize("style", [True, False])
def test_columns_of_texts_are_marked_and_the_styles_of_data_are_not_taken_over(tmp_path, style):
    notebook = write_notebook(tmp_path / "n.ipynb", new_output("display_data", {"text/html": table_html(style=style)}))
    html = export_html(notebook, tmp_path / "n.html").read_text(encoding="utf-8").split("</head>", 1)[1]
    assert "color: red" not in html
    rows = BeautifulSoup(html, "html.parser").select("table tr")
    marked = [
        [cell.get_text() for cell in row.find_all(["th", "td"]) if "nml-text" in cell.get("class", [])] for row in rows
    ]
    heading, names, first, second = marked
    assert heading[-2:] == ["ratio", "why"]
    assert not {"n", "difference"} & set(heading + names)
    assert first == ["LP", "5 %", "w" * 50]
    assert second == ["7", "random init", "1"]
    long = BeautifulSoup(html, "html.parser").select("table .nml-long")
    assert [cell.get_text() for cell in long] == ["w" * 50, "1"]


def test_a_heading_over_several_columns_and_a_table_in_a_cell_keep_their_places(tmp_path):
    text = (
        '<table><thead><tr><th></th><th colspan="2">two</th></tr><tr><th></th><th>a</th><th>b</th></tr></thead>'
        '<tbody><tr><th rowspan="2">x</th><td>1</td><td><table><tr><td>inner</td></tr></table></td></tr>'
        "<tr><td>2</td><td>3</td></tr></tbody></table>"
    )
    notebook = write_notebook(tmp_path / "n.ipynb", new_output("display_data", {"text/html": text}))
    page = BeautifulSoup(export_html(notebook, tmp_path / "n.html").read_text(encoding="utf-8"), "html.parser")
    marked = [cell.get_text() for cell in page.select("table .nml-text")]
    assert marked == ["", "", "b", "x", "inner", "inner", "3"]


def parameters_cell(source: str, tag: str = "parameters") -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": [tag]})


def test_the_parameters_of_the_run_stand_under_the_title_as_text(tmp_path):
    cells = [
        new_markdown_cell("# A question\n\nMore."),
        parameters_cell("profile = 'demo'\nobjective = 'supervised'\nrun_dir = ''\nratios = []\nrate = 0.1"),
        parameters_cell(f"# Parameters\nobjective = {SCRIPT!r}\nrun_dir = '/elsewhere'", "injected-parameters"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "n.ipynb")
    html = export_html(tmp_path / "n.ipynb", tmp_path / "n.html").read_text(encoding="utf-8")
    page = BeautifulSoup(html, "html.parser")
    shown = [one.get_text() for one in page.select(".params .param")]
    assert shown == ["profile = demo", f"objective = {SCRIPT}", "rate = 0.1"]
    assert page.select_one("h1").find_next("p")["class"] == ["params"]
    assert "<script>" not in html


@pytest.mark.parametrize("source", ["import os\nx = os.sep", "x = (", f"x = 0x{'f' * 5000}"])
def test_a_parameters_cell_of_another_kind_is_left_to_the_code(tmp_path, source):
    nbformat.write(new_notebook(cells=[parameters_cell(source)]), tmp_path / "n.ipynb")
    html = export_html(tmp_path / "n.ipynb", tmp_path / "n.html").read_text(encoding="utf-8")
    assert '<p class="params">' not in html


def test_code_is_folded_away(body):
    assert re.search(r"<details><summary>code</summary>.*kept in view", body, re.DOTALL)


@pytest.mark.parametrize("content", [None, b"not json", b"{}", b'{"cells": 3}'])
def test_what_is_not_a_notebook_is_refused(tmp_path, content):
    path = tmp_path / "n.ipynb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"Expected a Jupyter notebook at .*n\.ipynb, got"):
        export_html(path, tmp_path / "n.html")
    assert not (tmp_path / "n.html").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the chromium command to open the page")
def test_chromium_draws_the_figures_offline_and_runs_no_foreign_script(page, tmp_path):
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert dom.count('class="main-svg"') >= 2
    assert "<title>attacked" not in dom
    assert "&lt;img src=x" in re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
