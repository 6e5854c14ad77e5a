"""The run monitor: what the runs of a suite are doing now, and what they have found so far."""

import html
from collections.abc import Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from nml_kit.batch import (
    State,
    accuracy_in_words,
    accuracy_lines,
    longest_in_words,
    progress_in_words,
    progress_table,
    read_statuses,
    result_accuracies,
)
from nml_kit.errors import InvalidInputError
from nml_kit.plots import found_lines, progress_bars, state_color
from nml_kit.study import METHODS
from nml_kit.widgets.explorer import Card, Explorer

_ALL = "all"
_INTERVAL = 2000  # milliseconds from look to look
_COLUMNS = ["state", "seconds", "run", "error", "result"]  # what a narrow page shows first
_ORDERS = ("as planned", "slowest first")


class RunMonitor(Explorer):
    """The runs under the directory `runs`, looked at every two seconds while `timer` plays, or at a click.

    The timer is the browser's: it ends with the page. `view` holds state ("all" or one), order, and method (whose
    accuracy is drawn). Raises InvalidInputError if there is no such directory; without runs it waits for them.
    """

    def __init__(self, runs: str | Path) -> None:
        self._runs, pick = Path(runs), ipywidgets.Dropdown
        if not self._runs.is_dir():
            raise InvalidInputError(f"Expected a directory of runs, but there is none at {runs}; check the path.")
        self._read()
        controls = {
            "state": pick(options=[_ALL, *get_args(State)], description="runs"),
            "order": pick(options=_ORDERS, description="order"),
            "method": pick(options=METHODS, description="accuracy of"),
        }
        self.timer = ipywidgets.Play(interval=_INTERVAL, max=10**6, repeat=True)
        button = ipywidgets.Button(description="look now", icon="refresh")
        self.table, self.found = ipywidgets.HTML(), Card(640)
        super().__init__(controls, ipywidgets.HBox([self.timer, button]), self.table, [self.found])
        self.timer.observe(lambda _: self.refresh(), "value")
        button.on_click(lambda _: self.refresh())

    def refresh(self) -> None:
        """Look at the runs again."""
        self._read()
        self.redraw(set(self.view))

    def redraw(self, changed: Set[str]) -> None:
        """Draw the table and the figure."""
        table, state = self._progress, self.view["state"]
        if self.view["order"] == "slowest first":
            table = table.sort_values("seconds", ascending=False, kind="stable")
        heading = f"{progress_in_words(table)}, at {self._looked:%H:%M:%S} UTC"
        self.table.value = _table_html(table if state == _ALL else table[table["state"] == state], heading)
        lines = accuracy_lines(self._accuracies, self.view["method"])
        self.found.show(found_lines(lines, title=accuracy_in_words(lines, self.view["method"])))

    def static(self) -> go.Figure:
        """A bar per run, by state and seconds, as they are now, with buttons that sort them."""
        self._read()
        finding = [progress_in_words(self._progress), longest_in_words(self._progress)]
        return progress_bars(self._progress, title="; ".join(filter(None, finding)))

    def _read(self) -> None:
        try:
            statuses = read_statuses(self._runs)
        except InvalidInputError:  # there are none yet
            statuses = []
        self._looked = datetime.now(UTC)
        self._progress, self._accuracies = progress_table(statuses, now=self._looked), result_accuracies(statuses)


def _table_html(table: pd.DataFrame, heading: str) -> str:
    """The runs of a `progress_table` as HTML, without a column of errors if there is none; all texts are escaped."""
    top = f'<p style="margin:4px 0;line-height:1.4"><b>{html.escape(heading)}</b></p>'
    shown = table[[name for name in _COLUMNS if name != "error" or table["error"].any()]]
    if shown.empty:
        return top
    style = shown.style.set_uuid("runs").set_table_attributes('style="font-size:13px;line-height:1.4"')
    style.hide(axis="index").format(precision=1, thousands=",", na_rep="", escape="html")
    style.map(lambda state: f"border-left:6px solid {state_color(state)}", subset=["state"])
    cell: dict[str, Any] = {
        "text-align": "left",
        "vertical-align": "top",
        "padding": "2px 14px 2px 6px",
        "overflow-wrap": "anywhere",
    }
    return top + str(style.set_properties(**cell).to_html())
