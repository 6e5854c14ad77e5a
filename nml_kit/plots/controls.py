"""Menus, buttons and sliders that plotly draws itself: they work on a page without a kernel."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

_ROOM = {"menu": 46, "buttons": 46, "slider": 90}  # pixels
_FIRST = 34  # pixels from the panels to the first control: the titles of panels
_KEPT = {"template", "height", "margin", "legend", "meta", "updatemenus", "sliders"}  # of the layout, by every view


def add_control(
    figure: go.Figure, views: Mapping[str, go.Figure], kind: Literal["menu", "buttons", "slider"]
) -> go.Figure:
    """Put a control above the panels of a finished `figure`, of which each entry makes it one of the `views`.

    The views have the traces and axes of `figure`. An entry sets only what differs among them, so that several controls
    of a figure leave each other alone.
    """
    data = [[_leaves(trace.to_plotly_json()) for trace in view.data] for view in views.values()]
    layouts = [view.layout.to_plotly_json() for view in views.values()]
    layouts = [_leaves({key: part for key, part in layout.items() if key not in _KEPT}) for layout in layouts]
    traces = sorted({path for of_trace in zip(*data, strict=True) for path in _differing(of_trace)})
    paths, entries = _differing(layouts), []
    for label, of_view, layout in zip(views, data, layouts, strict=True):
        restyle = {path: [trace.get(path) for trace in of_view] for path in traces}
        relayout = {path: layout.get(path) for path in paths}
        entries.append({"label": label, "method": "update", "args": [restyle, relayout]})
    above = _FIRST + _make_room(figure, _ROOM[kind])
    if kind == "slider":
        slider = {"steps": entries, "x": 0, "y": 1, "yanchor": "bottom", "pad": {"b": above, "t": 0}}
        slider["currentvalue"] = {"prefix": "noise: "}  # of sliders over anything else there are none
        return figure.update_layout(sliders=[*figure.layout.sliders, slider])
    menu = {"buttons": entries, "bgcolor": "white", "font": {"size": 12}, "x": 0, "xanchor": "left"}
    menu |= {"y": 1, "yanchor": "bottom", "pad": {"b": above}}
    menu |= {"type": "buttons", "direction": "right"} if kind == "buttons" else {}
    return figure.update_layout(updatemenus=[*figure.layout.updatemenus, menu])


def without_room(layout: dict[str, Any]) -> dict[str, Any]:
    """A figure's layout (plain data) without the room of its controls: for where these stand beside the figure."""
    meta = layout.get("meta")
    bare = meta.get("without_controls") if isinstance(meta, dict) else None
    return {**layout, **bare, "meta": {}} if isinstance(bare, dict) else layout


def _make_room(figure: go.Figure, pixels: int) -> int:
    """Make a figure higher above its panels; how many pixels there were between these and the legend already."""
    layout = figure.layout
    bare = {"height": layout.height, "margin": layout.margin.to_plotly_json(), "legend": layout.legend.to_plotly_json()}
    bare = (layout.meta or {"without_controls": bare})["without_controls"]
    before, height = layout.height - bare["height"], layout.height + pixels
    figure.update_layout(height=height, margin_t=layout.margin.t + pixels, meta={"without_controls": bare})
    figure.update_layout(legend_y=1 - (1 - layout.legend.y) * (height - pixels) / height)
    return int(before)


def _differing(states: Any) -> list[str]:
    paths = dict.fromkeys(path for state in states for path in state)
    return [path for path in paths if any(state.get(path) != states[0].get(path) for state in states)]


def _leaves(part: Any, path: str = "") -> dict[str, Any]:
    """The values in nested plain data by their paths as plotly.js has them, such as `annotations[0].text`."""
    if isinstance(part, dict):
        items = [(f"{path}.{key}" if path else key, value) for key, value in part.items()]
    elif isinstance(part, list | tuple) and part and isinstance(part[0], dict):
        items = [(f"{path}[{number}]", value) for number, value in enumerate(part)]
    else:
        return {path: _plain(part)}
    return {leaf: value for name, item in items for leaf, value in _leaves(item, name).items()}


def _plain(value: Any) -> Any:
    """A value for JSON: arrays as lists, numbers with five digits, None for NaN."""
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
