"""The explorers in a browser: from a key or a click to the redrawn figures, as whoever looks has to wait."""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from playwright.sync_api import Page

from benchmarks.measure import Row, in_turn
from nml_kit.widgets import TERMS, nmtune_head, quick_epochs
from tests.browser.servers import ROOT, TOKEN, open_browser, served

TIMES = 15
# From the event as the browser stamps it to the frame after the last of the figures has been drawn.
WATCH = """figures => {
    const boxes = figures.map(place => document.querySelectorAll(".js-plotly-plot")[place]);
    globalThis.waited = new Promise(resolve => {
        const started = new Promise(begin => {
            for (const kind of ["keydown", "mouseup"]) {
                document.addEventListener(kind, event => begin(event.timeStamp), { capture: true, once: true });
            }
        });
        const drawn = boxes.map(box => new Promise(done => box.once("plotly_afterplot", done)));
        Promise.all([started, ...drawn]).then(([begin]) => requestAnimationFrame(now => resolve(now - begin)));
    });
}"""
COMPARISON = (2, 3, 4, 5)  # its figures on the page: tasks, classes, confusions, spectra


def waits(page: Page, figures: tuple[int, ...], acts: list[Callable[[], None]]) -> list[float]:
    """Seconds from each act to the figures drawn."""
    seconds = []
    for act in acts:
        page.evaluate(WATCH, list(figures))
        act()
        seconds.append(page.evaluate("globalThis.waited") / 1000)
        page.wait_for_timeout(300)  # galleries follow
    return seconds


def of_limit(what: str, seconds: list[float], limit: float) -> Row:
    worst = f"{TIMES} times, the slowest {max(seconds) * 1000:.0f} ms"
    middle = statistics.median(seconds)
    return Row(what, "the limit", middle, limit, target=1, note=worst, samples={"ours": seconds})


def click_on_task(page: Page, number: int) -> Callable[[], None]:
    def act() -> None:
        dot = page.locator(".js-plotly-plot").nth(COMPARISON[0]).locator(".trace:last-child .points path").nth(number)
        box = dot.bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # type: ignore[index]

    return act


def in_browser() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as root, open_browser() as browser:
        directory = Path(root)
        shutil.copy(ROOT / "notebooks" / "explorer.ipynb", directory)
        command = ["voila", "explorer.ipynb", f"--token={TOKEN}"]
        with served(command, directory, directory / "home") as address:
            page = browser.new_page(viewport={"width": 1280, "height": 5000})
            page.goto(f"{address}/?token={TOKEN}", timeout=120_000)
            page.wait_for_function("document.querySelectorAll('.js-plotly-plot .xy').length >= 8", timeout=120_000)
            page.wait_for_timeout(3000)
            page.locator(".widget-slider:has-text('dashed at') .noUi-handle").focus()
            steps = waits(page, (0, 1), [lambda: page.keyboard.press("ArrowRight")] * TIMES)
            yield of_limit("a step of the ratio's slider to the redrawn spectrum and plane", steps, 0.15)
            clicks = waits(page, COMPARISON, [click_on_task(page, 1 + turn % 2) for turn in range(TIMES)])
            yield of_limit("a click on a task to the redrawn tasks, classes, confusions and spectra", clicks, 0.4)


def refits() -> list[float]:
    """Seconds of the playground's NMTune on as many features of 24 classes."""
    rng = np.random.default_rng(0)
    features, labels = rng.standard_normal((2000, 256), np.float32), rng.integers(24, size=2000)
    head = nmtune_head(0.01, TERMS, recipe="paper", epochs=quick_epochs(len(features)))
    return in_turn(lambda: head.fit(features, labels), repeats=TIMES)[0]


def rows() -> Iterator[Row]:
    yield from in_browser()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield of_limit("the playground refits NMTune on 2,000 × 256 features, one core", refits(), 1.0)
    finally:
        torch.set_num_threads(threads)
