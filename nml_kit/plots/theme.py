"""One look for every figure: the template "nml", a colour per noise ratio, a mark per method, safe texts."""

import base64
import functools
import html
import io
import math
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label

RANDOM_COLOR = "#8a8f98"
METHOD_MARKS = {"LP": ("#0072B2", "circle"), "MLP": ("#009E73", "square"), "NMTune": ("#D55E00", "diamond")}
_SPARE_MARKS = [("#CC79A7", "triangle-up"), ("#000000", "x"), ("#56B4E9", "star"), ("#E69F00", "cross")]
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
INK, _QUIET, _GRID = "#1f2430", "#5b6270", "#e6e8ec"
_LINE_HEIGHT = 25  # pixels of one title line
_PANEL_TITLE, _PANEL_FONT = 24, 14  # pixels above the first row of panels, for their titles; of these
_ROW_GAP = 72  # pixels between rows of panels: tick labels, axis title, panel title

_AXIS = {
    "showgrid": True,
    "gridcolor": _GRID,
    "zeroline": False,
    "linecolor": "#9aa1ac",
    "ticks": "outside",
    "ticklen": 4,
    "tickcolor": "#9aa1ac",
    "automargin": True,
    "title": {"font": {"size": 13, "color": _QUIET}, "standoff": 8},
}
pio.templates["nml"] = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": INK},
        "title": {"font": {"size": 18}, "x": 0.0, "xref": "container", "yref": "container", "pad": {"l": 4}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [color for color, _ in [*METHOD_MARKS.values(), *_SPARE_MARKS]],
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        "legend": {
            **{"orientation": "h", "x": 0.003, "xref": "container", "xanchor": "left"},
            **{"yref": "container", "yanchor": "top"},
            "title": {"font": {"size": 13, "color": _QUIET}},
        },
        "margin": {"l": 64, "r": 24, "b": 60},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


@functools.lru_cache(maxsize=64)
def ratio_color(ratio: float) -> str:
    """Return the colour of a noise ratio (fraction), the same in every figure; NaN, the random baseline, is grey.

    Plasma without its light end; the root spreads the small ratios, which matter most; above 0.5 it stays the same.

    >>> ratio_color(0.1) == ratio_color(0.10), ratio_color(float("nan"))
    (True, '#8a8f98')
    """
    if math.isnan(ratio):
        return RANDOM_COLOR
    if ratio < 0 or ratio > 1:
        raise InvalidInputError(f"Expected a noise ratio in [0, 1], got {ratio}: give it as a fraction.")
    position = 0.72 * math.sqrt(min(ratio, 0.5) / 0.5)
    return str(sample_colorscale("Plasma", [position])[0])


def as_text(text: object) -> str:
    """Escape `text` for plotly, which would read tags in labels and hovers as markup.

    In a hover's template it would put a number for `%{x}`; with MathJax on the page it would typeset what is between
    dollar signs, and leave the rest of the text out.

    >>> as_text("<b>cat</b> & dog")
    '&lt;b&gt;cat&lt;/b&gt; &amp; dog'
    >>> as_text("5 $ or 6 $: %{x}")
    '5 &#36; or 6 &#36;: &#37;{x}'
    """
    return html.escape(str(text), quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def method_marks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return (colour, marker symbol) per method: LP, MLP and NMTune first, spare marks for other names.

    >>> list(method_marks(["NMTune", "LP", "ridge"]))
    ['LP', 'NMTune', 'ridge']
    """
    names = {str(method) for method in methods}
    others = sorted(names - set(METHOD_MARKS))
    marks = {name: mark for name, mark in METHOD_MARKS.items() if name in names}
    return marks | {name: _SPARE_MARKS[place % len(_SPARE_MARKS)] for place, name in enumerate(others)}


def wrap(text: object, width: int) -> str:
    """Escape `text` and break it at spaces into lines of at most `width` characters.

    >>> wrap("arrow-left → <b>", 12)
    'arrow-left →<br>&lt;b&gt;'
    """
    return "<br>".join(as_text(line) for line in textwrap.wrap(str(text), width, break_on_hyphens=False))


def bullets(sentences: Iterable[str]) -> str:
    """Sentences as a Markdown list, with the empty line that must come before it.

    >>> bullets(["ID: no change", "OOD: falls"])
    '\\n\\n- ID: no change\\n- OOD: falls'
    """
    return "\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def panel_grid(
    frame: pd.DataFrame, x_title: str, y_title: str, *, panel_height: int
) -> tuple[go.Figure, list[tuple[Any, pd.DataFrame]]]:
    """A grid of two columns, one panel per protocol and task, ID first; and (row, column), rows of `frame` for each.

    Its height in pixels, with `panel_height` for each panel, is the figure's.
    """
    groups = list(frame.groupby(["protocol", "task"]))
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    titles = [as_text(f"{protocol} · {task}") for (protocol, task), _ in groups]
    inner_height = rows * panel_height + (rows - 1) * _ROW_GAP
    spacing = {"horizontal_spacing": 0.12, "vertical_spacing": _ROW_GAP / inner_height}
    figure = make_subplots(rows, columns, subplot_titles=titles, **spacing)
    figure.update_layout(height=inner_height + 60)
    places = [((place // columns + 1, place % columns + 1), part) for place, (_, part) in enumerate(groups)]
    for (row, column), _ in places:
        if (row - 1) * columns + column + columns > len(places):
            figure.update_xaxes(title_text=x_title, row=row, col=column)
        if column == 1:
            figure.update_yaxes(title_text=y_title, row=row, col=column)
    return figure, places


def error_bar(part: pd.DataFrame, color: str) -> dict[str, Any]:
    up, down = part["high"] - part["mean"], part["mean"] - part["low"]
    return {"array": up, "arrayminus": down, "symmetric": False, "color": color, "thickness": 1.5, "width": 3}


def dodge(values: Any, order: list[Any], member: Any, members: list[Any]) -> list[float]:
    """Place each value at its rank in `order`, shifted so that the members of a group do not cover each other."""
    keys, names = [str(key) for key in order], [str(name) for name in members]
    shift = (names.index(str(member)) + 0.5) / len(names) - 0.5
    return [keys.index(str(value)) + 0.7 * shift for value in values]


def category_axis(figure: go.Figure, labels: list[str]) -> None:
    ticks = {"tickvals": list(range(len(labels))), "ticktext": labels, "range": [len(labels) - 0.5, -0.5]}
    figure.update_yaxes(showgrid=False, ticks="", **ticks)


def png_uri(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def interval_trace(part: pd.DataFrame, x: str, y: str, method: str, mark: tuple[str, str]) -> go.Scatter:
    color, symbol = mark
    texts = [f"{as_text(method)}, {ratio_label(ratio)}" for ratio in part["ratio"]]
    hover = "%{text}<br>%{customdata[0]:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]<extra></extra>"
    trace = go.Scatter(x=part[x], y=part[y], text=texts, hovertemplate=hover, mode="markers")
    trace.update(customdata=part[["mean", "low", "high"]], line={"color": color, "width": 2})
    trace.update(marker={"color": color, "symbol": symbol, "size": 9})
    trace.update({"error_x" if x == "mean" else "error_y": error_bar(part, color)})
    return trace.update(name=as_text(method), legendgroup=as_text(method))


def ratio_band(x: Any, low: Any, high: Any, ratio: float) -> go.Scatter:
    """The area between two lines, in the colour of a ratio, under its entry of the legend."""
    there_and_back = np.concatenate([x, x[::-1]])
    return go.Scatter(
        x=there_and_back, y=np.concatenate([high, low[::-1]]), mode="lines", line={"width": 0}, hoverinfo="skip",
        fill="toself", fillcolor=ratio_color(ratio), opacity=0.18, **ratio_legend(ratio, shown=False),
    )  # fmt: skip


def ratio_legend(ratio: float, *, shown: bool) -> dict[str, Any]:
    return {"name": ratio_label(ratio), "legendgroup": ratio_label(ratio), "showlegend": shown}


def finish(figure: go.Figure, title: str, *, height: int, legend: str | None = None) -> go.Figure:
    """Give `figure` the template, its title in wrapped lines, a legend row, room for titles of panels.

    `height` is that of the panels in pixels.
    """
    panel_titles = [note for note in figure.layout.annotations if note.yref == "paper" and note.yanchor == "bottom"]
    for note in panel_titles:  # larger, neighbours would meet in a narrow page; lower, rules would touch them
        note.update(font_size=min(note.font.size or _PANEL_FONT, _PANEL_FONT), yshift=4)
    lines = wrap(title, 90)
    extra_lines = lines.count("<br>")
    title_height = 16 + _LINE_HEIGHT * (extra_lines + 1)
    top = title_height + (78 if legend else 10 + _PANEL_TITLE * bool(panel_titles))
    total = height + top
    figure.update_layout(template="nml", height=total, margin={"t": top})
    # plotly centres further title lines about the first one: half a line down for each keeps them inside
    title_top = 12 + _LINE_HEIGHT / 2 * extra_lines
    figure.update_layout(title={"text": lines, "y": 1 - title_top / total, "xanchor": "left", "yanchor": "top"})
    figure.update_layout(showlegend=legend is not None)
    figure.update_layout(
        legend={"title": {"text": (legend or "").strip(), "side": "top"}, "y": 1 - title_height / total}
    )
    return figure


def without_title(figure: go.Figure) -> go.Figure:
    """Take the title off a finished `figure`, with its room: for where it stands above the figure as a text."""
    lines = (figure.layout.title.text or "").count("<br>") + 1
    spare = _LINE_HEIGHT * lines + 8
    height, top = figure.layout.height - spare, figure.layout.margin.t - spare
    figure.update_layout(title=None, height=height, margin_t=top)
    return figure.update_layout(legend_y=1 - 8 / height)


def without_room(layout: dict[str, Any]) -> dict[str, Any]:
    """A figure's layout (plain data) without the pixels above and below the panels that `meta["room"]` gives controls.

    The title and the legend keep their distance from the top. For where the controls stand beside the figure.
    """
    meta, margin, height = (layout.get(name, 0) for name in ("meta", "margin", "height"))
    room = meta.get("room") if isinstance(meta, dict) else None
    if not (
        isinstance(room, dict) and isinstance(margin, dict) and _all_numbers(height, *room.values(), *margin.values())
    ):
        return layout  # not a figure of ours
    lower = height - sum(room.values())
    shorter: dict[str, Any] = {
        "meta": {},
        "height": lower,
        "margin": {side: pixels - room.get(side, 0) for side, pixels in margin.items()},
    }
    for name in ("title", "legend"):
        part = layout.get(name)
        if isinstance(part, dict) and _all_numbers(part.get("y")):
            shorter[name] = part | {"y": 1 - (1 - part["y"]) * height / lower}
    return layout | shorter


def _all_numbers(*values: object) -> bool:
    return all(isinstance(value, int | float) for value in values)


def epoch_axis(figure: go.Figure, last: int) -> None:
    """Label the horizontal axes with whole epochs up to the `last`, at most about seven of them."""
    figure.update_xaxes(title_text="epoch", tick0=0, dtick=max(1, math.ceil(last / 7)))
