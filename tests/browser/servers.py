"""A browser and the servers it visits; skipped, with the reason, only where there is no browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
_PATIENCE = 120_000  # milliseconds, for a machine that does other work beside
expect.set_options(timeout=_PATIENCE)
TOKEN = "only-for-this-test"  # noqa: S105


@contextmanager
def open_browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: install it (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(command: list[str], directory: Path, home: Path) -> Iterator[str]:
    """The address of a server started with `command`, once it listens; it ends with the block."""
    log, port = directory / "server.log", _free_port()
    environment = os.environ | {"NML_HOME": str(home), "HOME": str(directory)}  # no settings of a user
    with log.open("w") as output:
        started = [sys.executable, "-m", *command, "--no-browser", f"--port={port}"]
        process = subprocess.Popen(started, cwd=directory, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _await(process, port, log)
        yield f"http://localhost:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _await(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError(f"The server did not start: {log.read_text(encoding='utf-8')[-2000:]}")


@contextmanager
def page_without_errors(
    browser: Browser, width: int = 1280, height: int = 800, *, offline: bool = False
) -> Iterator[Page]:
    """A page whose console holds no error when the block ends, but for what another server does not give.

    (The template of Voilà asks one for icons that we do not show.)
    """
    page, errors = browser.new_page(viewport={"width": width, "height": height}, offline=offline), []

    def note(message: ConsoleMessage) -> None:
        address = message.location.get("url", "")
        if message.type == "error" and urlparse(address).hostname in (None, "localhost"):
            errors.append(f"{message.text} ({address})")

    page.set_default_timeout(_PATIENCE)
    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors, errors
