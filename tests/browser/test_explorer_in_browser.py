"""All explorers in JupyterLab and in Voilà: a drag changes the state in Python and what is drawn, a click filters."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from nml_kit.batch import RunStatus, write_status
from tests.browser.servers import ROOT, TOKEN, open_browser, page_without_errors, served

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("two_tasks")]
# What Python holds, as text on the page: it changes only by way of the kernel.
MIRROR = """
import ipywidgets, json
mirror, explorers = ipywidgets.HTML(), [spectra, comparison, noise, terms, monitor]
def tell(_=None):
    mirror.value = "<pre class='mirror'>" + json.dumps([one.view for one in explorers]) + "</pre>"
for one in explorers:
    one.observe(tell, "view")
tell()
mirror
"""
SPECTRUM, PLANE, TASKS, CLASSES, CONFUSIONS, PAIR, MATRIX, ACCURACY, TERMS, FOUND = range(10)  # figures on the page
SPECTRA, COMPARISON, NOISE, PLAYGROUND, MONITOR = range(5)  # explorers in the mirror

RUN_ALL = """async () => {
    const panel = window.jupyterapp.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await window.jupyterapp.commands.execute("notebook:run-all-cells");
}"""


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def notebook(tmp_path) -> Path:
    content = json.loads((ROOT / "notebooks" / "explorer.ipynb").read_text(encoding="utf-8"))
    mirror = {"cell_type": "code", "execution_count": None, "id": "mirror", "metadata": {}, "outputs": []}
    write_status(RunStatus(name="one", notebook=Path("n.ipynb"), run_dir=tmp_path / "runs" / "one", state="waiting"))
    watch = mirror | {"id": "watch", "source": "monitor = widgets.RunMonitor('runs')\nmonitor"}
    content["cells"] += [watch, mirror | {"source": MIRROR}]
    path = tmp_path / "explorer.ipynb"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def views(page: Page) -> list[dict]:
    return json.loads(page.locator("pre.mirror").inner_text())


def wait_for_view(page: Page, explorer: int, condition: str) -> dict:
    """The view of an explorer in Python once it fulfils a condition in JavaScript."""
    page.wait_for_function(
        f"(view => {condition})(JSON.parse(document.querySelector('pre.mirror').innerText)[{explorer}])"
    )
    return views(page)[explorer]


def drawn(figure: int, of: str) -> str:
    """JavaScript that tells a part of a figure on the page."""
    return f"JSON.stringify([...document.querySelectorAll('.js-plotly-plot')][{figure}]?.{of} ?? null)"


def wait_for_change(page: Page, figure: int, of: str, before: str) -> None:
    page.wait_for_function(f"before => {drawn(figure, of)} != before", arg=before)


def drag(page: Page, label: str, pixels: int) -> None:
    handle = page.locator(f".widget-slider:has-text('{label}') .noUi-handle")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=5)
    page.mouse.up()


def everything_is_drawn(page: Page) -> None:
    expect(page.locator("pre.mirror")).to_be_visible()
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg:first-child').length == 10")
    labels = [box.get_attribute("aria-label") for box in page.locator("[role=figure]").all()]
    assert len(labels) == 10
    assert all(labels)


def the_ratio_between_moves_the_dashed_line(page: Page) -> None:
    dashed = "data.filter(trace => trace.line?.dash == 'dash').map(trace => trace.y)"
    before = page.evaluate(drawn(SPECTRUM, dashed))
    drag(page, "dashed at", 60)
    wait_for_view(page, SPECTRA, "view.between > 0.05")
    wait_for_change(page, SPECTRUM, dashed, before)


def hovering_an_index_shows_its_samples(page: Page) -> None:
    figure = page.locator(".js-plotly-plot").nth(SPECTRUM)
    figure.scroll_into_view_if_needed()
    box = figure.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 10)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    direction = wait_for_view(page, SPECTRA, "view.direction > 1")["direction"]
    expect(page.get_by_text(f"Direction {direction} of the raw features")).to_be_visible()


def clicking_a_class_filters_the_gallery(page: Page) -> None:
    """A click on the class that loses most: the gallery shows only that."""
    figure = page.locator(".js-plotly-plot").nth(CLASSES)
    figure.scroll_into_view_if_needed()
    captions = page.locator("figcaption").filter(has_text="of seeds")
    before = captions.all_inner_texts()
    figure.locator(".scatterlayer .trace:last-child .points path").first.click(force=True)
    chosen = wait_for_view(page, COMPARISON, "view.given != 'every class'")["given"]
    expect(captions).not_to_have_count(len(before))
    shown = captions.all_inner_texts()
    assert shown == [caption for caption in before if caption.startswith(f"{chosen} → ")]
    assert shown


def the_noise_ratio_changes_the_matrix_and_a_row_the_gallery(page: Page) -> None:
    counts = "data.map(trace => trace.z)"
    before = page.evaluate(drawn(MATRIX, counts))
    drag(page, "ratio", -30)
    wait_for_view(page, NOISE, "view.ratio < 0.3")
    wait_for_change(page, MATRIX, counts, before)
    cells = page.locator(".js-plotly-plot").nth(MATRIX).locator(".nsewdrag").first
    cells.scroll_into_view_if_needed()
    cells.click(force=True)
    chosen = wait_for_view(page, NOISE, "view.own_class != 'every class'")["own_class"]
    shown = page.locator("figcaption").filter(has_text=f"{chosen} → ")
    expect(shown.first).to_be_visible()


def the_weight_refits_the_head(page: Page) -> None:
    spectrum = "data.map(trace => trace.y)"
    before = page.evaluate(drawn(TERMS, spectrum))
    drag(page, "log₁₀ λ", 40)
    weight = wait_for_view(page, PLAYGROUND, "view.log_weight > -2")["log_weight"]
    wait_for_change(page, TERMS, spectrum, before)
    expect(page.get_by_text(f"Loss CE + {10**weight:.3g} · MSE")).to_be_visible()


def the_monitor_sees_a_run_end(page: Page, runs: Path) -> None:
    expect(page.get_by_text("1 runs: 1 waiting").or_(page.get_by_text("1 run: 1 waiting"))).to_be_visible()
    write_status(RunStatus(name="one", notebook=Path("n.ipynb"), run_dir=runs / "one", state="done", seconds=3.0))
    page.get_by_role("button", name="look now").click()
    expect(page.get_by_text("1 done").first).to_be_visible()


def look_at_all(page: Page, runs: Path) -> None:
    everything_is_drawn(page)
    the_ratio_between_moves_the_dashed_line(page)
    hovering_an_index_shows_its_samples(page)
    clicking_a_class_filters_the_gallery(page)
    the_noise_ratio_changes_the_matrix_and_a_row_the_gallery(page)
    the_weight_refits_the_head(page)
    the_monitor_sees_a_run_end(page, runs)


def test_in_jupyterlab(browser, notebook, tmp_path, smoke_home):
    command = ["jupyterlab", f"--IdentityProvider.token={TOKEN}", "--allow-root",
               f"--ServerApp.root_dir={tmp_path}", "--LabApp.expose_app_in_browser=True",
               "--LabApp.news_url=None"]  # fmt: skip
    settings = tmp_path / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)  # cells out of sight stay on the page, for this test to read
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}', encoding="utf-8")
    with served(command, tmp_path, smoke_home) as address, page_without_errors(browser) as page:
        page.goto(f"{address}/lab/tree/explorer.ipynb?token={TOKEN}")
        page.wait_for_function("window.jupyterapp !== undefined")
        page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
        page.evaluate(RUN_ALL)
        look_at_all(page, tmp_path / "runs")


def test_in_voila(browser, notebook, tmp_path, smoke_home):
    """A drag, a click and a button reach its kernel; what they do there is what they do in JupyterLab."""
    command = ["voila", "explorer.ipynb", f"--token={TOKEN}"]
    with served(command, tmp_path, smoke_home) as address, page_without_errors(browser) as page:
        page.goto(f"{address}/?token={TOKEN}")
        everything_is_drawn(page)
        the_ratio_between_moves_the_dashed_line(page)
        clicking_a_class_filters_the_gallery(page)
        the_monitor_sees_a_run_end(page, tmp_path / "runs")


def test_there_is_no_browser_without_chromium(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"), open_browser():
        pass
