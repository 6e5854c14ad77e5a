"""Runs as a static site that opens from the file system: an index of all, a page for each notebook, one plotly.js."""

import base64
import hashlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from nml_kit.batch.status import RunStatus, read_statuses
from nml_kit.batch.summary import ROW_COLUMNS, means_of_rows, summary_of_runs
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.pages import (
    TEXT,
    figure_json,
    figure_title,
    holds_numbers,
    notebook_page,
    read_notebook,
    render,
    shown_parameters,
    write_text,
)
from nml_kit.store import explained, temporary_beside

PLOTLY_FILE, INDEX = "plotly.min.js", "index.html"
_NOTEBOOKS = ("notebook.ipynb", "unfinished.ipynb")  # the second: as far as a run came that was killed
_MOODS = {"done": "good", "hit": "good", "running": "busy", "waiting": "", "skipped": "", "interrupted": "stopped"}
_ORDER = ("failed", "timed out", "kernel died", "unreadable", "interrupted", "skipped", "running", "waiting", "done")
_FEW = 20  # runs: with more, their tables are folded
_ROWS, _COLUMNS, _CELL = 40, 12, 60  # of a table in the index; characters of a cell
_SOURCE = 3000  # characters of a failing cell
_THUMBNAILS, _THUMBNAIL_BYTES = 3, 6_000  # of a run; of each
_POINTS = (40, 20, 10)  # along each axis of a trace, at most: the first that fits
_AXIS_KEYS = ("type", "range", "autorange", "domain", "anchor", "overlaying", "side", "matches", "scaleanchor")
_AXIS = {"showticklabels": False, "ticks": "", "zeroline": False, "gridcolor": "#e6e8ec", "linecolor": "#9aa1ac"}
_BARE = {
    "layout": {"xaxis": _AXIS, "yaxis": _AXIS, "margin": {"l": 6, "r": 6, "t": 6, "b": 6}, "plot_bgcolor": "white"}
}
# fmt: off
_TRACE_KEYS = (
    "type", "mode", "x", "y", "z", "x0", "dx", "y0", "dy", "fill", "fillcolor", "line", "marker", "xaxis", "yaxis",
    "orientation", "stackgroup", "visible", "opacity", "colorscale", "zmin", "zmax", "source", "values", "labels",
    "base", "width", "histfunc", "nbinsx",
)
# fmt: on


class Table(NamedTuple):
    """A small table of texts for the index, with the class of each column's cells in the page."""

    caption: str
    columns: list[str]
    rows: list[list[str]]

    @property
    def classes(self) -> list[str]:
        """Of columns of texts, TEXT; of others, none."""
        cells = [[row[place] for row in self.rows] for place in range(len(self.columns))]
        return ["" if all(map(holds_numbers, column)) else TEXT for column in cells]


class Thumbnail(NamedTuple):
    """A small figure for the index."""

    title: str
    json: Markup


class Row(NamedTuple):
    """A run as the index shows it: texts, and the file name of its page, "" for none."""

    label: str
    state: str
    mood: str
    page: str
    params: list[tuple[str, str]]
    seconds: str
    finished: str
    error: str
    cell_source: str
    numbers: Table | None
    thumbnails: list[Thumbnail]


def write_report(runs: str | Path, out: str | Path | None = None) -> Path:
    """Write the site about all runs under `runs` into the directory `out`, `runs`/report by default; return its index.

    It is written aside and replaces an earlier report when it is complete. Runs that go on or cannot be read are shown
    as such. Raises InvalidInputError if there are no runs or `out` holds anything but a report, StoreError if it
    cannot be written.
    """
    runs = Path(runs).resolve()
    out = Path(out).resolve() if out is not None else runs / "report"
    _refuse_foreign(out)
    statuses = read_statuses(runs)
    with _replacing_directory(out) as site:
        groups: dict[str, list[Row]] = {}
        for status in statuses:
            parent = Path(status.name).parent.as_posix()
            groups.setdefault(runs.name if parent == "." else parent, []).append(_row(status, runs, site))
        rows = [row for group in groups.values() for row in group]
        drawn = any(row.thumbnails for row in rows)
        counts = sorted(Counter((row.state, row.mood) for row in rows).items(), key=lambda one: _ORDER.index(one[0][0]))
        text = render(
            "report.html.j2", title=f"Runs: {runs.name}", groups=list(groups.items()), few=len(rows) <= _FEW,
            counts=[(*kind, count) for kind, count in counts], plotly_js="", plotly_src=PLOTLY_FILE if drawn else None,
        )  # fmt: skip
        write_text(site / INDEX, text)
        write_text(site / PLOTLY_FILE, get_plotlyjs())
    return out / INDEX


def _row(status: RunStatus, runs: Path, site: Path) -> Row:
    """The run for the index; its page is written into `site`."""
    state = "done" if status.state == "hit" else status.state
    mood = _MOODS.get(state, "bad")
    page, source, thumbnails = "", "", list[Thumbnail]()
    notebook = None if state == "waiting" else _notebook(status.run_dir)  # what waits may hold outdated results
    if notebook is not None:
        source = _failing_source(notebook) if mood != "good" else ""
        above = {"name": status.name, "state": state, "mood": mood, "error": status.error}
        written = notebook_page(notebook, status.name, plotly_src=PLOTLY_FILE, run=above)
        page = _page_name(status.name)
        write_text(site / page, written.html)
        made = (_thumbnail(figure) for figure in written.figures)
        thumbnails = [one for one in made if one is not None][:_THUMBNAILS]
    return Row(
        label=Path(status.name).name or runs.name, state=state, mood=mood, page=page,
        params=shown_parameters(status.params),
        seconds="" if status.seconds is None else f"{status.seconds:.1f}",
        finished=status.finished.replace("T", " ").removesuffix("+00:00"),
        error=status.error, cell_source=source, numbers=None if state == "waiting" else _numbers(status.run_dir),
        thumbnails=thumbnails,
    )  # fmt: skip


def _notebook(run_dir: Path) -> Any:
    for name in _NOTEBOOKS:
        try:
            return read_notebook(run_dir / name)
        except DataFileError:
            continue
    return None


def _page_name(name: str) -> str:
    """A file name that needs no quoting in a link and that no other run has."""
    readable = re.sub("[^a-z0-9]+", "-", name.lower())[:80].strip("-")
    return f"{readable}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}.html"


def _failing_source(notebook: Any) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "code" and any(output.output_type == "error" for output in cell.outputs):
            return str(cell.source)[:_SOURCE]
    return ""


def _numbers(run_dir: Path) -> Table | None:
    """The run's summary, else the means of its rows by noise and method, else the head of another table of rows."""
    summary, rows = run_dir / "summary.parquet", run_dir / "rows.parquet"
    try:
        if summary.exists():
            caption = "accuracy: a fraction with its 95 % interval; SVE and LSVR in nats; means over tasks"
            return _table(caption, summary_of_runs(run_dir))
        if not rows.exists():
            return None
        frame = pd.read_parquet(rows)
        if set(ROW_COLUMNS) <= set(frame):
            return _table("means over tasks; accuracy as a fraction, SVE and LSVR in nats", means_of_rows(frame))
        return _table(f"the first of {len(frame)} rows" if len(frame) > _ROWS else "rows", frame)
    except (
        DataFileError,
        OSError,
        ValueError,
        TypeError,
    ) as error:  # pyarrow's and ours; of texts where numbers should be
        return Table("results that cannot be read", ["error"], [[_cut(str(error))]])


def _table(caption: str, frame: pd.DataFrame) -> Table:
    head = frame.iloc[:_ROWS, :_COLUMNS]
    rows = [[_cut(f"{cell:.4g}" if isinstance(cell, float) else str(cell)) for cell in row]
            for row in head.itertuples(index=False, name=None)]  # fmt: skip
    return Table(caption, [_cut(str(column)) for column in head.columns], rows)


def _cut(text: str, length: int = _CELL) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _thumbnail(figure: dict[str, Any]) -> Thumbnail | None:
    """The figure without texts, in as many points as fit; at the fewest, traces beyond are left out, None if all."""
    shown = [trace for trace in figure["data"] if isinstance(trace, dict)]
    for points in _POINTS:
        thin = [
            {key: _thinned(trace[key], points) for key in _TRACE_KEYS if key in trace} | {"showscale": False}
            for trace in shown
        ]
        sizes = accumulate(len(to_json_plotly(trace, engine="json")) for trace in thin)
        traces = [trace for trace, size in zip(thin, sizes, strict=True) if size <= _THUMBNAIL_BYTES]
        if len(traces) == len(shown):
            break
    if not traces:
        return None
    layout: dict[str, Any] = {key: figure["layout"][key] for key in ("barmode",) if key in figure["layout"]}
    for name, axis in figure["layout"].items():
        if re.fullmatch(r"[xy]axis\d*", name) and isinstance(axis, dict):
            layout[name] = {key: axis[key] for key in _AXIS_KEYS if key in axis}
    layout |= {"template": _BARE, "showlegend": False}
    return Thumbnail(
        _cut(figure_title(figure), 90),
        figure_json({"data": traces, "layout": layout}, staticPlot=True, responsive=True),
    )


def _thinned(value: Any, points: int) -> Any:
    """Plain data with numbers of four digits; of a list, also one in plotly's binary form, evenly at most `points`."""
    if isinstance(value, dict) and "bdata" in value:
        value = _decoded(value)
    if isinstance(value, dict):
        return {key: _thinned(part, points) for key, part in value.items()}
    if isinstance(value, list):
        return [_thinned(part, points) for part in value[:: max(1, math.ceil(len(value) / points))]]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _decoded(packed: dict[str, Any]) -> Any:
    try:
        kind = np.dtype(str(packed.get("dtype"))).newbyteorder("<")
        if kind.kind not in "iuf":
            return []
        array = np.frombuffer(base64.b64decode(packed["bdata"]), kind)
        shape = [int(size) for size in str(packed.get("shape") or array.size).split(",")]
        return array.reshape(shape).tolist()
    except (ValueError, TypeError):
        return []


def _refuse_foreign(out: Path) -> None:
    """Raise InvalidInputError if the directory holds what no report holds, as it will be replaced."""
    if not out.exists():
        return
    inside = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    foreign = [name for name in inside if not (name == PLOTLY_FILE or (out / name).suffix == ".html")]
    if foreign or (inside and not {INDEX, PLOTLY_FILE} <= set(inside)):
        raise InvalidInputError(
            f"Expected a new directory or an earlier report, which is replaced, at {out}, got one with "
            f"{', '.join((foreign or inside)[:3])}: choose another with --out."
        )


@contextmanager
def _replacing_directory(out: Path) -> Iterator[Path]:
    """Give a directory to fill; on success it becomes `out`, whole, and on an error an earlier `out` stays."""
    new, old = temporary_beside(out), temporary_beside(out)
    with explained(out):
        try:
            new.mkdir(parents=True)
            yield new
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
