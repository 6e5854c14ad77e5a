"""Runs as a static site that opens from the file system: an index of all, a page for each notebook, one plotly.js."""

import hashlib
import os
import re
import shutil
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from nml_kit.batch.results import key_result, summary_of_runs
from nml_kit.batch.status import RunStatus, read_statuses
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.pages import figure_title, notebook_page, read_notebook, render, shown_parameters
from nml_kit.store import explained, temporary_beside

PLOTLY_FILE, INDEX = "plotly.min.js", "index.html"
_NOTEBOOKS = ("notebook.ipynb", "unfinished.ipynb")  # the second: as far as a run came that was killed
_MOODS = {"done": "good", "hit": "good", "running": "busy", "waiting": "", "skipped": "", "interrupted": "stopped"}
_ORDER = ("failed", "timed out", "kernel died", "unreadable", "interrupted", "skipped", "running", "waiting", "done")
_SOURCE = 3000  # characters of a failing cell
_THUMBNAILS, _THUMBNAIL_BYTES = 3, 20_000  # of a run; of each
_AXIS_KEYS = ("type", "range", "autorange", "domain", "anchor", "overlaying", "side", "matches", "scaleanchor")
_AXIS = {"showticklabels": False, "ticks": "", "zeroline": False, "gridcolor": "#e6e8ec", "linecolor": "#9aa1ac"}
_MARGIN = dict.fromkeys("lrtb", 6)
_BARE = {"layout": {"xaxis": _AXIS, "yaxis": _AXIS, "margin": _MARGIN, "plot_bgcolor": "white"}}


def write_report(runs: str | Path, out: str | Path | None = None) -> Path:
    """Write the site about all runs under `runs` into the directory `out`, `runs`/report by default; return its index.

    It is written aside and replaces an earlier report when it is complete. Runs that go on or cannot be read are shown
    as such. Raises InvalidInputError if there are no runs or `out` holds anything but a report, StoreError if it
    cannot be written.
    """
    runs = Path(runs).resolve()
    out = Path(out).resolve() if out is not None else runs / "report"
    _refuse_foreign(out)
    statuses, site = read_statuses(runs), temporary_beside(out)
    with explained(out):
        try:
            site.mkdir(parents=True)
            _write_site(statuses, runs, site)
            if out.exists():
                shutil.rmtree(out)
            site.rename(out)
        finally:
            shutil.rmtree(site, ignore_errors=True)
    return out / INDEX


def _write_site(statuses: list[RunStatus], runs: Path, site: Path) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for status in statuses:
        parent = Path(status.name).parent.as_posix()
        groups.setdefault(runs.name if parent == "." else parent, []).append(_row(status, runs, site))
    rows = [row for group in groups.values() for row in group]
    counts = Counter((row["state"], row["mood"]) for row in rows)
    try:
        summary = Markup(summary_of_runs(runs).to_html(index=False, border=0))  # noqa: S704 (pandas escapes)
    except InvalidInputError:
        summary = Markup("")
    except DataFileError as error:
        summary = Markup("<p>{}</p>").format(str(error))
    text = render(
        "report.html.j2",
        title=f"Runs: {runs.name}",
        groups=groups,
        counts=sorted(counts.items(), key=lambda count: _ORDER.index(count[0][0])),
        summary=summary,
        plotly_js="",
        plotly_src=PLOTLY_FILE if any(row["thumbnails"] for row in rows) else None,
    )
    (site / INDEX).write_text(text, encoding="utf-8")
    (site / PLOTLY_FILE).write_text(get_plotlyjs(), encoding="utf-8")


def _row(status: RunStatus, runs: Path, site: Path) -> dict[str, Any]:
    """The run for the index; its page is written into `site`."""
    state = "done" if status.state == "hit" else status.state
    mood, seconds = _MOODS.get(state, "bad"), status.seconds_at(datetime.now(UTC))
    row: dict[str, Any] = {
        "label": Path(status.name).name or runs.name,
        "state": state,
        "mood": mood,
        "page": "",
        "cell_source": "",
        "params": shown_parameters(status.params),
        "seconds": "" if seconds is None else f"{seconds:.1f}",
        "finished": f"{status.finished:%Y-%m-%d %H:%M:%S}" if status.finished else "",
        "error": status.error,
        "result": key_result(status),
        "thumbnails": [],
    }
    for file in _NOTEBOOKS if state != "waiting" else ():  # what waits may hold outdated results
        with suppress(DataFileError):
            notebook = read_notebook(status.run_dir / file)
            row["cell_source"] = _failing_source(notebook) if mood != "good" else ""
            above = {"name": status.name, "state": state, "mood": mood, "error": status.error}
            page, figures = notebook_page(notebook, status.name, plotly_src=PLOTLY_FILE, run=above)
            row["page"] = _page_name(status.name)
            (site / row["page"]).write_text(page, encoding="utf-8")
            row["thumbnails"] = [text for figure in figures if (text := _thumbnail(figure))][:_THUMBNAILS]
            break
    return row


def _page_name(name: str) -> str:
    """A file name that needs no quoting in a link and that no other run has."""
    readable = re.sub("[^a-z0-9]+", "-", name.lower())[:80].strip("-")
    return f"{readable}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}.html"


def _failing_source(notebook: Any) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "code" and any(output.output_type == "error" for output in cell.outputs):
            return str(cell.source)[:_SOURCE]
    return ""


def _thumbnail(figure: dict[str, Any]) -> tuple[str, Markup] | None:
    """Title and JSON of the figure without its texts; None if it is too large for the index."""
    layout: dict[str, Any] = {"template": _BARE, "showlegend": False, "barmode": figure["layout"].get("barmode")}
    for name, axis in figure["layout"].items():
        if re.fullmatch(r"[xy]axis\d*", name) and isinstance(axis, dict):
            layout[name] = {key: axis[key] for key in _AXIS_KEYS if key in axis}
    data = [{**trace, "showscale": False} for trace in figure["data"] if isinstance(trace, dict)]
    drawn = {"data": data, "layout": layout, "config": {"staticPlot": True, "responsive": True}}
    text = Markup(to_json_plotly(drawn, engine="json"))  # noqa: S704 (`<` and `>` are escaped)
    return (figure_title(figure)[:90], text) if data and len(text) <= _THUMBNAIL_BYTES else None


def _refuse_foreign(out: Path) -> None:
    """Raise InvalidInputError if the directory holds what no report holds, as it will be replaced."""
    if not out.exists():
        return
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    foreign = [name for name in inside if name != PLOTLY_FILE and Path(name).suffix != ".html"]
    if foreign or (inside and not {INDEX, PLOTLY_FILE} <= set(inside)):
        raise InvalidInputError(
            f"Expected a new directory or an earlier report, which is replaced, at {out}, got one with "
            f"{', '.join((foreign or inside)[:3])}: choose another with --out."
        )
