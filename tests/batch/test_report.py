"""A site made from runs of every state, with hostile names, parameters and texts, read as HTML and in Chromium."""

import base64
import functools
import hashlib
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from nml_kit import plots
from nml_kit.batch import RunStatus, report, run_lock, write_plan, write_report, write_status
from nml_kit.cli import app
from nml_kit.errors import InvalidInputError, StoreError
from tests.batch.test_results import summary_frame
from tests.pages.test_notebook import IMAGE, SCRIPT, figure_output
from tests.widgets.test_monitor import result_rows

HOSTILE = "</script>" + SCRIPT + IMAGE


def wave(points: int = 500) -> go.Figure:
    x = np.linspace(0, 6, points)
    return go.Figure(go.Scatter(x=x, y=np.sin(x), name=HOSTILE), layout={"title": {"text": HOSTILE}})


def write_run(run_dir: Path, state: str, *outputs: nbformat.NotebookNode, notebook: bool = True, **facts) -> RunStatus:
    run_dir.mkdir(parents=True)
    values = {"name": run_dir.name, "notebook": Path("n.ipynb"), "run_dir": run_dir, "state": state, "seconds": 12.34}
    status = RunStatus(**values | {"finished": "2026-01-02T03:04:05+00:00"} | facts)
    write_status(status)
    if notebook:
        cell = new_code_cell(f"work()  # {HOSTILE}", execution_count=1, outputs=list(outputs))
        nbformat.write(
            new_notebook(cells=[new_markdown_cell(f"# Why? {HOSTILE}"), cell]), str(run_dir / "notebook.ipynb")
        )
    return status


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs that are done, failed, dead, killed, going on, waiting and unreadable; one is called `</script>…`."""
    runs = tmp_path_factory.mktemp("made") / "runs & more"
    suite = runs / "suite"
    matrix = plots.confusion_matrix(np.array([[9, 1], [2, 8]]), [HOSTILE, "cat"], title=f"Flipped: {HOSTILE}")
    outputs = figure_output(wave()), figure_output(matrix), figure_output(wave(200_000)), figure_output(wave())
    write_run(suite / "good", "done", *outputs, params={"profile": "smoke", "run_dir": "/elsewhere", HOSTILE: HOSTILE})
    summary_frame(0.5).assign(method=HOSTILE).to_parquet(suite / "good" / "summary.parquet")
    result_rows(methods=("LP",)).to_parquet(suite / "good" / "rows.parquet")
    error = new_output("error", ename="ValueError", evalue=HOSTILE, traceback=[f"\x1b[31mValueError\x1b[0m: {HOSTILE}"])
    failed = {"cell": 2, "error": f"cell 2: ValueError: {HOSTILE}"}
    write_run(suite / HOSTILE, "failed", figure_output(wave()), error, **failed)
    write_run(suite / "dead", "kernel died", notebook=False, error="the kernel died")
    (suite / "dead" / "rows.parquet").write_bytes(b"PAR1 cut short")
    write_run(suite / "killed", "running")
    (suite / "killed" / "notebook.ipynb").rename(suite / "killed" / "unfinished.ipynb")
    going = write_run(suite / "going", "running", seconds=None, finished=None)
    (suite / "unreadable").mkdir()
    (suite / "unreadable" / "status.json").write_text('{"name": ' + IMAGE)
    write_plan(suite, [going.model_copy(update={"name": "later", "run_dir": suite / "later", "state": "waiting"})])
    return runs


@pytest.fixture(scope="module")
def index(runs):
    with run_lock(runs / "suite" / "going"):
        return write_report(runs)


def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def digests(site: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in site.iterdir()}


def run_of(index: Path, label: str) -> BeautifulSoup:
    bodies = parsed(index).select("table.runs > tbody")
    return next(body for body in bodies if body.select("td")[1].get_text() == label)


def test_all_runs_are_listed_with_their_states_counts_on_top(index, runs):
    page = parsed(index)
    assert index == runs / "report" / "index.html"
    assert [one.get_text() for one in page.select(".counts li")] == [
        "1 failed", "1 kernel died", "1 unreadable", "1 interrupted", "1 running", "1 waiting", "1 done",
    ]  # fmt: skip
    states = {
        body.select("td")[1].get_text(): body.select_one(".badge").get_text() for body in page.select("tbody[class]")
    }
    assert states == {
        "later": "waiting", "good": "done", "dead": "kernel died", "killed": "interrupted", "going": "running",
        "unreadable": "unreadable", Path(HOSTILE).name: "failed",
    }  # fmt: skip
    assert len(page.select("tbody.bad")) == 3
    assert page.select_one("h2").get_text() == "suite"


def test_a_run_tells_parameters_times_numbers_and_its_first_figures(index):
    good = run_of(index, "good")
    hostile, profile = [cell.get_text() for cell in good.select(".param")]
    assert profile == "profile = smoke"
    assert hostile.startswith(f"{HOSTILE} = </script><script>")
    assert [cell.get_text() for cell in good.select("tr:first-child > td")[3:5]] == ["12.3", "2026-01-02 03:04:05"]
    assert good.select_one(".result").get_text() == "ID accuracy LP 0.500"
    assert len(good.select(".thumbs a .nml-figure[data-lazy]")) == 3


def test_the_summaries_of_all_runs_stand_on_top_as_one_table(index):
    cells = [cell.get_text() for cell in parsed(index).select(".numbers td")]
    assert cells[:3] == ["random init", HOSTILE, "0.500 [0.490, 0.510]"]


def test_a_failed_run_shows_its_error_its_cell_and_how_far_it_came(index):
    failed = run_of(index, Path(HOSTILE).name)
    assert failed.select_one("pre.error").get_text() == f"cell 2: ValueError: {HOSTILE}"
    assert failed.select_one("pre.cell").get_text() == f"work()  # {HOSTILE}"
    page = parsed(index.with_name(failed.select_one("a")["href"]))
    assert page.select_one("pre.error").get_text() == f"cell 2: ValueError: {HOSTILE}"
    assert "ValueError: </script>" in page.select_one(".output_error pre").get_text()
    assert len(page.select(".nml-figure")) == 1
    assert run_of(index, "killed").select_one("a") is not None  # from unfinished.ipynb


def test_runs_without_a_notebook_have_no_link(index):
    assert [run_of(index, name).select("a") for name in ("dead", "unreadable", "later")] == [[], [], []]


def test_plotly_js_is_there_once_and_the_site_is_small(index):
    start = get_plotlyjs()[:2000]
    files = sorted(index.parent.iterdir())
    assert [path.name for path in files if start in path.read_text(encoding="utf-8")] == ["plotly.min.js"]
    others = [path for path in files if path.name != "plotly.min.js"]
    assert len(others) == 1 + 4
    assert index.stat().st_size < 80_000  # though a figure has 200,000 points


def test_every_link_resolves_and_nothing_is_loaded_from_elsewhere(index):
    for path in index.parent.glob("*.html"):
        page = parsed(path)
        assert [meta["content"].split(";")[0] for meta in page.select("meta[http-equiv]")] == ["default-src 'none'"]
        assert page.select("link, iframe, object, embed, form, base") == []
        for element in page.select("[src]"):
            assert element["src"].startswith("data:") or (path.parent / element["src"]).is_file()
        for element in page.select("a[href]"):
            assert (path.parent / unquote(element["href"])).is_file()
        assert "@import" not in str(page)


def test_texts_from_data_are_texts(index):
    for path in index.parent.glob("*.html"):
        page = parsed(path)
        nonce = page.select_one("meta[http-equiv]")["content"].split("'nonce-")[1].split("'")[0]
        scripts = page.select("script")
        plain = [script for script in scripts if script.get("type") != "application/json"]
        assert len(plain) in (0, 2)
        assert all(script["nonce"] == nonce for script in plain)
        assert all(json.loads(script.string)["data"] for script in scripts if script not in plain)
        assert not [element for element in page.find_all(True) for name in element.attrs if name.startswith("on")]
        assert all(image.get("src", "data:").startswith("data:") for image in page.select("img"))


def decoded(packed: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])


def test_a_thumbnail_keeps_the_shape_of_its_curve(index):
    content = json.loads(run_of(index, "good").select_one("script").string)
    (trace,) = content["data"]
    x = np.linspace(0, 6, 500)
    np.testing.assert_allclose(decoded(trace["x"]), x)
    np.testing.assert_allclose(decoded(trace["y"]), np.sin(x))
    assert content["config"]["staticPlot"]
    assert "title" not in content["layout"]


def test_again_gives_the_same_bytes_also_where_the_runs_were_moved(index, runs, tmp_path):
    before = digests(index.parent)
    with run_lock(runs / "suite" / "going"):
        write_report(runs)
    assert digests(index.parent) == before
    moved = tmp_path / runs.name
    shutil.copytree(runs, moved, ignore=shutil.ignore_patterns("report"))
    with run_lock(moved / "suite" / "going"):
        copied = digests(write_report(moved, tmp_path / "site").parent)
    assert set(copied) == set(before)
    assert {name for name in before if copied[name] != before[name]} <= {"index.html"}  # it tells the unreadable path
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_earlier_report_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    write_run(tmp_path / "one", "done", figure_output(wave()))
    index = write_report(tmp_path)
    before = digests(index.parent)

    def full_disk() -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report, "get_plotlyjs", full_disk)
        with pytest.raises(StoreError, match="No space left"):
            write_report(tmp_path)
    assert digests(index.parent) == before
    shutil.rmtree(tmp_path / "one")
    write_run(tmp_path / "two", "done")
    write_report(tmp_path)
    assert len(digests(index.parent)) == 3  # the page of what is gone is gone
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_directory_that_is_no_report_is_never_replaced(tmp_path):
    write_run(tmp_path / "runs" / "one", "done")
    for name in ("thesis.tex", "mine.html"):
        other = tmp_path / f"holds {name}"
        other.mkdir()
        (other / name).write_text("dear to me")
        with pytest.raises(InvalidInputError, match=rf"{name}: choose another with --out"):
            write_report(tmp_path / "runs", other)
        assert (other / name).read_text() == "dear to me"
    with pytest.raises(InvalidInputError, match="choose another"):
        write_report(tmp_path / "runs", tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    assert write_report(tmp_path / "runs", tmp_path / "empty").is_file()


def test_no_runs_are_an_error_and_the_command_says_what_to_open(tmp_path):
    missing = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (missing.exit_code, "use `nml run` first" in missing.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
    write_run(tmp_path / "runs" / "one", "done")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "site")])
    assert result.output == f"Open {(tmp_path / 'site' / 'index.html').as_uri()}\n"


@pytest.mark.parametrize("column", ["ratio", "value", "metric"])
def test_foreign_results_and_figures_are_shown_or_left_out_but_never_a_crash(tmp_path, column):
    packed = [{"bdata": "AAAA", "dtype": kind} for kind in ("S3", "O", "f8", "none", "f4")] + [{"bdata": 3}, {}]
    outputs = [
        new_output("display_data", {"application/vnd.plotly.v1+json": content})
        for content in ({"data": [{"x": one} for one in packed] + [3]}, {"data": [3]}, {"layout": {"xaxis": 3}}, 3)
    ]
    write_run(tmp_path / "one", "done", *outputs)
    result_rows().assign(**{column: "text"}).to_parquet(tmp_path / "one" / "rows.parquet")
    run = run_of(write_report(tmp_path), "one")
    assert run.select_one(".result") is None
    assert len(run.select(".thumbs .nml-figure")) == 1


@pytest.fixture(params=["file", "http"])
def address(request, index):
    if request.param == "file":
        yield index.parent.as_uri()
        return
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=index.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the chromium command to open the pages")
def test_chromium_draws_every_figure_and_runs_no_foreign_script(index, address, tmp_path):
    pages = sorted(index.parent.glob("*.html"), key=lambda path: parsed(path).select(".nml-figure") == [])
    for path in [index, pages[0]] if address.startswith("file:") else [index]:
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            f"--user-data-dir={tmp_path}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--window-size=1280,6000", "--virtual-time-budget=12000", "--enable-logging=stderr", "--log-level=0",
            "--dump-dom", f"{address}/{path.name}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        page = BeautifulSoup(done.stdout, "html.parser")
        figures = page.select(".nml-figure")
        assert len(figures) == len(parsed(path).select(".nml-figure"))
        assert all(figure.select("svg.main-svg") and "js-plotly-plot" in figure["class"] for figure in figures)
        assert page.title.get_text() != "attacked"
        assert [line for line in done.stderr.splitlines() if "CONSOLE" in line and "favicon" not in line] == []
