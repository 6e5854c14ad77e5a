"""The explorer in JupyterLab and in Voilà: a drag changes the state in Python and the drawn line, a click filters."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.servers import ROOT, TOKEN, open_browser, page_without_errors, served

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(300)]
# What Python holds, as text on the page: it changes only by way of the kernel.
MIRROR = """
import ipywidgets, json
mirror = ipywidgets.HTML()
def tell(_=None):
    mirror.value = "<pre class='mirror'>" + json.dumps([spectra.view, comparison.view]) + "</pre>"
spectra.observe(tell, "view"); comparison.observe(tell, "view"); tell()
mirror
"""

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
    content["cells"].append(mirror | {"source": MIRROR})
    path = tmp_path / "explorer.ipynb"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def views(page: Page) -> list[dict]:
    return json.loads(page.locator("pre.mirror").inner_text())


def line_of(page: Page) -> list[float]:
    """The dashed line of the spectrum explorer, as drawn."""
    script = "document.querySelector('.js-plotly-plot').data.filter(t => t.line && t.line.dash == 'dash').map(t => t.y)"
    return page.evaluate(f"JSON.parse(JSON.stringify({script}[0]))")


def drag_changes_state_and_line(page: Page) -> None:
    expect(page.locator("pre.mirror")).to_be_visible()
    expect(page.locator(".js-plotly-plot .main-svg").first).to_be_visible()
    page.wait_for_function("document.querySelector('.js-plotly-plot').data?.some(t => t.line?.dash == 'dash')")
    before, state = line_of(page), views(page)[0]["between"]
    handle = page.locator(".widget-slider:has-text('dashed at') .noUi-handle")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function("JSON.parse(document.querySelector('pre.mirror').innerText)[0].between > 0.05")
    assert views(page)[0]["between"] > state
    page.wait_for_function(
        "before => JSON.stringify(document.querySelector('.js-plotly-plot').data.filter("
        "t => t.line && t.line.dash == 'dash')[0].y) != before", arg=json.dumps(before)
    )  # fmt: skip


def click_filters_the_gallery(page: Page) -> None:
    """A click on the class that loses most, in the second figure of the comparison: the gallery shows only that."""
    figure = page.locator(".js-plotly-plot").nth(3)
    figure.scroll_into_view_if_needed()
    captions = page.locator("figcaption").filter(has_text="of seeds")
    before = captions.all_inner_texts()
    figure.locator(".scatterlayer .trace:last-child .points path").first.click(force=True)
    page.wait_for_function("JSON.parse(document.querySelector('pre.mirror').innerText)[1].given != 'every class'")
    chosen = views(page)[1]["given"]
    expect(captions).not_to_have_count(len(before))
    shown = captions.all_inner_texts()
    assert shown == [caption for caption in before if caption.startswith(f"{chosen} → ")]
    assert shown


def test_in_jupyterlab(browser, notebook, tmp_path):
    command = ["jupyterlab", f"--IdentityProvider.token={TOKEN}", "--allow-root",
               f"--ServerApp.root_dir={tmp_path}", "--LabApp.expose_app_in_browser=True",
               "--LabApp.news_url=None"]  # fmt: skip
    settings = tmp_path / ".jupyter" / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)  # cells out of sight stay on the page, for this test to read
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}', encoding="utf-8")
    with served(command, tmp_path, tmp_path / "home") as address, page_without_errors(browser) as page:
        page.goto(f"{address}/lab/tree/explorer.ipynb?token={TOKEN}")
        page.wait_for_function("window.jupyterapp !== undefined")
        page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
        page.evaluate(RUN_ALL)
        drag_changes_state_and_line(page)
        click_filters_the_gallery(page)


def test_in_voila(browser, notebook, tmp_path):
    command = ["voila", "explorer.ipynb", f"--token={TOKEN}"]
    with served(command, tmp_path, tmp_path / "home") as address, page_without_errors(browser) as page:
        page.goto(f"{address}/?token={TOKEN}")
        drag_changes_state_and_line(page)
        click_filters_the_gallery(page)


def test_there_is_no_browser_without_chromium(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"), open_browser():
        pass
