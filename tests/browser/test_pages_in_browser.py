"""Exported pages without network or kernel: by keyboard, on a phone, in the dark, on paper, for who cannot see."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from playwright.sync_api import Browser, Page, expect

from nml_kit.pages import PLOTLY_MIME, export_html
from nml_kit.plots import spectrum_page, transition_page
from tests.browser.servers import open_browser, page_without_errors

pytestmark = pytest.mark.timeout(300)
PANELS, RATIOS = ["ID · one", "OOD · two"], [0.0, 0.1, 0.3]
PAPER = 703  # CSS pixels of an A4 page within margins of 12 mm


def spectra() -> go.Figure:
    keys = [(panel, method, ratio) for panel in PANELS for method in ("LP", "NMTune") for ratio in RATIOS]
    bands = pd.concat(
        pd.DataFrame({"panel": panel, "method": method, "ratio": ratio, "index": np.arange(1, 41),
                      "mean": (1 + PANELS.index(panel) + ratio) / np.arange(1, 41)})
        for panel, method, ratio in keys
    )  # fmt: skip
    bands = bands.assign(low=bands["mean"] * 0.9, high=bands["mean"] * 1.1, change=bands["ratio"])
    points = pd.DataFrame(keys, columns=["panel", "method", "ratio"]).assign(sve=3.0, lsvr=1.0)
    return spectrum_page(bands, points, quantity="share", title="Spectra")


def transitions() -> go.Figure:
    counts = {ratio: np.full((4, 4), round(10 * ratio)) + 20 * np.eye(4, dtype=int) for ratio in RATIOS[1:]}
    return transition_page({ratio: (counts[ratio], f"Noise of {ratio}") for ratio in counts}, list("abcd"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    table = pd.DataFrame({"task": ["one", "two"], **{f"column {n}": [0.1234, 0.5678] for n in range(12)}})
    outputs = [
        nbformat.v4.new_output("display_data", {PLOTLY_MIME: spectra().to_plotly_json()}),
        nbformat.v4.new_output("display_data", {PLOTLY_MIME: transitions().to_plotly_json()}),
        nbformat.v4.new_output("display_data", {"text/html": table.to_html()}),
    ]
    cells = [nbformat.v4.new_markdown_cell("# A question\n\nA long text. " + "It goes on and on. " * 20),
             nbformat.v4.new_code_cell("draw()", outputs=outputs)]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), directory / "n.ipynb")
    return export_html(directory / "n.ipynb", directory / "n.html")


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, exported: Path):
    with page_without_errors(browser, offline=True) as opened:
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(exported.as_uri())
        expect(opened.locator(".nml-figure .main-svg").first).to_be_visible()
        yield opened
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def drawn(page: Page, figure: int, of: str) -> object:
    return page.evaluate(f"JSON.stringify([...document.querySelectorAll('.nml-figure')][{figure}].{of})")


def test_menus_and_sliders_of_figures_work_by_keyboard(page):
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.tagName + (document.activeElement.type ?? '')"))
    assert {"SUMMARY", "SELECTselect-one", "INPUTrange"} <= set(reached)

    menu = page.locator(".controls select").first
    assert menu.locator("option").all_inner_texts() == PANELS
    before = drawn(page, 0, "data.map(trace => trace.y)")
    menu.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        "before => JSON.stringify(document.querySelector('.nml-figure').data.map(t => t.y)) != before", arg=before
    )

    slider, told = page.locator(".controls input").last, page.locator(".controls output").last
    shown = "data.map(trace => trace.z)"
    before, text = drawn(page, 1, shown), told.inner_text()
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert told.inner_text() != text
    assert slider.evaluate("range => range.ariaValueText") == told.inner_text()
    page.wait_for_function(
        f"before => JSON.stringify(document.querySelectorAll('.nml-figure')[1].{shown}) != before", arg=before
    )
    assert "Noise of 0.3" in drawn(page, 1, "layout.title.text")

    code = page.locator("summary").first
    code.focus()
    page.keyboard.press("Enter")
    expect(page.locator("details pre").first).to_be_visible()


def test_plotly_draws_no_second_menu_and_leaves_no_room_for_one(page):
    assert page.locator(".updatemenu-container, .slider-container").count() == 0
    heights = page.evaluate("[...document.querySelectorAll('.nml-figure')].map(box => box.layout.height)")
    for figure, height in zip((spectra(), transitions()), heights, strict=True):
        assert height == figure.layout.meta["without_controls"]["height"] < figure.layout.height


def test_every_figure_says_what_it_shows(page):
    labels = [box.get_attribute("aria-label") for box in page.locator(".nml-figure[role=img]").all()]
    assert labels == ["Spectra", "Noise of 0.1"]


def test_a_phone_shows_it_all(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    expect(page.locator("figcaption").first).to_be_visible()
    for control in page.locator(".controls select, .controls input").all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.locator("summary").first.click()
    ground = colour(page, "body", "backgroundColor")
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    for selector in ("h1", "p", "summary", "td", "th", ".controls label"):
        assert contrast(colour(page, selector, "color"), ground) >= 4.5, selector
    code = colour(page, "details pre", "backgroundColor")
    for token in page.locator("details pre span").all():
        text = token.evaluate("span => getComputedStyle(span).color")
        assert contrast(numbers(text), code) >= 4.5, token.inner_text()


def test_paper_is_white_holds_the_figures_and_no_controls(page):
    page.set_viewport_size({"width": PAPER, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    assert luminance(colour(page, "body", "color")) < 0.1
    for hidden in ("details", ".controls"):
        expect(page.locator(hidden).first).to_be_hidden()
    for figure in page.locator(".nml-figure").all():
        assert figure.bounding_box()["width"] <= PAPER
    assert page.pdf(format="A4").startswith(b"%PDF")


def colour(page: Page, selector: str, of: str) -> np.ndarray:
    return numbers(page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{of}"))


def numbers(css: str) -> np.ndarray:
    return np.array([float(part) for part in re.findall(r"[\d.]+", css)][:3]) / 255


def luminance(rgb: np.ndarray) -> float:
    """The relative luminance of the Web Content Accessibility Guidelines 2.2."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    lighter, darker = sorted([luminance(one), luminance(other)], reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
