"""A plotly figure in the page of a notebook: Python sends it whole, and hears which point was clicked or hovered.

plotly's own FigureWidget brings 5 MB of code with each figure and compiles it for each; a browser too busy to do so
within two seconds never hears of changes again. Here the code travels and is compiled once for all figures.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anywidget
import ipywidgets
import plotly.graph_objects as go
import traitlets
from plotly.offline import get_plotlyjs


class Point(NamedTuple):
    """A point of a figure under the pointer: its trace, its place in the trace (row, column in a heatmap), x and y."""

    trace: Any
    index: Any
    x: Any
    y: Any


class _Library(anywidget.AnyWidget):
    """Carries the code of plotly.js to the page."""

    _esm = "export default {};"
    code = traitlets.Unicode().tag(sync=True)


@functools.cache
def _library() -> _Library:
    return _Library(code=get_plotlyjs())


class FigureView(anywidget.AnyWidget):
    """What is on the page of the go.Figure `figure`, an empty one until `show`."""

    _esm = Path(__file__).with_suffix(".js")
    library = traitlets.Instance(ipywidgets.Widget).tag(sync=True, **ipywidgets.widget_serialization)
    json = traitlets.Unicode("{}").tag(sync=True)
    label = traitlets.Unicode("figure").tag(sync=True)

    def __init__(self) -> None:
        self.figure = go.Figure()
        self._reactions: dict[str, Callable[[Point], None]] = {}
        super().__init__(library=_library())
        self.on_msg(self._told)

    def show(self, figure: go.Figure, label: str) -> None:
        """Draw `figure`; `label` says what it shows to those who cannot see it."""
        self.figure = figure
        with self.hold_sync():
            self.label, self.json = label, str(figure.to_json())

    def on(self, event: Literal["click", "hover"], react: Callable[[Point], None]) -> None:
        """Call `react` with the point that is clicked or hovered, in place of what was called before."""
        self._reactions[event] = react

    def _told(self, _: Any, content: dict[str, Any], __: Any) -> None:
        react = self._reactions.get(content["kind"])
        if react and content["trace"] < len(self.figure.data):  # the page may be one drawing behind
            react(Point(self.figure.data[content["trace"]], content["index"], content["x"], content["y"]))
