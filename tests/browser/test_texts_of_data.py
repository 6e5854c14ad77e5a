"""Names, captions and errors that come from data are texts in every widget, figure, hover, menu and exported page."""

import functools
import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Page, expect
from plotly.offline import get_plotlyjs

from nml_kit.pages import PLOTLY_MIME, export_html
from nml_kit.widgets import Explorer, FigureView
from nml_kit.widgets import view as _figure_view
from tests.browser.hostile_results import EVERY, EXPLORERS, MARKUP, NAMES, write_tasks
from tests.browser.servers import open_browser

pytestmark = pytest.mark.timeout(300)
DRAWING = Path(__file__).with_name("drawing.js").read_text(encoding="utf-8")
# Some notebooks have it. It would typeset what stands in a name between dollar signs, links to scripts included.
MATHJAX = "globalThis.MathJax = { version: '3.2.2', get _() { globalThis.alerted = 'formula'; } };"
WITH_NAMES_ON_AXES_AND_HOVERS = {"noise_comparison", "noise_gallery", "run_monitor"}


class Shown(NamedTuple):
    """All that an explorer puts on a page: values of HTML widgets, states of figure views, its static figure (JSON)."""

    values: list[str]
    views: list[dict[str, str]]
    static: str


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def _tasks(tmp_path_factory):
    """Data sets are found by relative paths, which are their names."""
    directory = tmp_path_factory.mktemp("hostile")
    write_tasks(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield


@functools.cache
def shown_by(make: Callable[[], Explorer]) -> Shown:
    explorer, values, views = make(), [], []
    for choices in ({}, *EXPLORERS[make]):
        explorer.choose(**choices)
        widgets = all_widgets(explorer)
        values += [widget.value for widget in widgets if isinstance(widget, ipywidgets.HTML)]
        views += [{"json": widget.json, "label": widget.label} for widget in widgets if isinstance(widget, FigureView)]
    return Shown(values, views, explorer.static().to_json())


def all_widgets(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [widget, *(found for child in getattr(widget, "children", ()) for found in all_widgets(child))]


class Visit:
    """A page without network, and whatever in it was more than a text."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.faults = page, []
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.add_init_script(MATHJAX)
        page.goto(path.as_uri())
        page.evaluate(DRAWING)

    def draw(self, figures: dict[str, Any]) -> None:
        self.page.evaluate("figures => drawFigures(figures)", figures)

    def check_texts(self, figures: int) -> list[dict[str, list[str]]]:
        """The texts by figure, after all were looked at: every name is there, none is shown otherwise than it is."""
        drawn = self.page.locator(".js-plotly-plot:has(.main-svg)")
        expect(drawn).to_have_count(figures)
        found = self.page.evaluate("allFigureTexts()")
        texts = [text for figure in found for part in figure.values() for text in part]
        texts += self.page.evaluate("pageTexts()")
        assert [text for text in texts if broken_names(text)] == []
        assert names_in(texts) == set(NAMES)
        assert self.page.locator("img[src='x']").count() == 0
        assert not self.page.evaluate("globalThis.alerted")
        assert self.faults == []
        return found


@pytest.fixture
def visit(browser):
    context = browser.new_context(offline=True, viewport={"width": 1000, "height": 800})
    yield lambda path: Visit(context.new_page(), path)
    context.close()


def squeezed(text: str) -> str:
    """Without spaces: lines break at them."""
    return re.sub(r"\s+", "", text)


def broken_names(text: str) -> list[str]:
    """Where the word of a name is followed by something else than its markup, which may be cut short with a "…"."""
    found, text = [], squeezed(text)
    for word, markup in MARKUP.items():
        for after in text.split(word)[1:]:
            cut, ellipsis, _ = after.partition("…")
            if not (after.startswith(squeezed(markup)) or (ellipsis and squeezed(markup).startswith(cut))):
                found.append(f"{word}{after[:40]}")
    return found


def names_in(texts: Collection[str]) -> set[str]:
    return {name for name in NAMES if any(squeezed(name) in squeezed(text) for text in texts)}


def test_what_is_not_escaped_is_found(visit, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(f"<!DOCTYPE html><html><body><p>{EVERY}</p></body></html>", encoding="utf-8")
    visited = visit(path)
    visited.page.wait_for_function("globalThis.alerted")
    assert visited.page.locator("img[src='x']").count() == 1
    broken = broken_names(visited.page.evaluate("pageTexts()")[0])
    assert [name.startswith(word) for name, word in zip(broken, MARKUP, strict=False)] == [True] * 4  # HTML has those


@pytest.mark.parametrize("make", EXPLORERS, ids=lambda make: make.__name__)
def test_an_explorer_shows_names_as_texts(make, visit, tmp_path):
    shown, path = shown_by(make), tmp_path / "page.html"
    body = "".join(f"<div>{value}</div>" for value in shown.values)
    head = f'<meta charset="utf-8"><script>{get_plotlyjs()}</script>'
    path.write_text(f"<!DOCTYPE html><html><head>{head}</head><body>{body}</body></html>", encoding="utf-8")
    visited = visit(path)
    code = Path(_figure_view.__file__).with_suffix(".js").read_text(encoding="utf-8")
    visited.draw({"code": code, "views": shown.views, "statics": [shown.static]})
    figures = visited.check_texts(len(shown.views) + 1)
    assert all(figure["hovers"] for figure in figures)
    if make.__name__ in WITH_NAMES_ON_AXES_AND_HOVERS:
        hovers, ticks = ({text for figure in figures for text in figure[part]} for part in ("hovers", "ticks"))
        assert names_in(hovers) == set(NAMES)
        assert names_in(ticks) >= {name for name in NAMES if len(name) < 20}


def test_an_exported_page_shows_names_as_texts(visit, tmp_path):
    shown = [shown_by(make) for make in EXPLORERS]
    tables = [value for one in shown for value in one.values] + [pd.DataFrame({EVERY: NAMES}, index=NAMES).to_html()]
    figures = [json.loads(one.static) for one in shown]
    outputs = [
        *(new_output("display_data", {"text/html": table}) for table in tables),
        *(new_output("display_data", {PLOTLY_MIME: figure}) for figure in figures),
        new_output("stream", name="stdout", text=EVERY),
        new_output("stream", name="stderr", text=EVERY),
        new_output("error", ename="ValueError", evalue=EVERY, traceback=[f"ValueError: {EVERY}"]),
    ]
    parameters = new_code_cell(f"classes = {NAMES[1:3]!r}", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Results"), parameters, new_code_cell(f"# {EVERY}", outputs=outputs)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "n.ipynb")
    visited = visit(export_html(tmp_path / "n.ipynb", tmp_path / "n.html"))
    assert all(figure["drawn"] and figure["hovers"] for figure in visited.check_texts(len(figures)))
