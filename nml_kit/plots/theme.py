"""One look for every figure: the template "nml", a mark per method, protocol and noise ratio, texts that stay texts."""

import html
import math
import textwrap
from collections.abc import Iterable
from typing import NamedTuple

import plotly.graph_objects as go
import plotly.io as pio
from plotly.colors import sample_colorscale

from nml_kit.errors import InvalidInputError
from nml_kit.inference import METHODS, VERDICTS, ratio_label

INK, GREY, PALE, _GRID = "#1f2430", "#8a8f98", "#c3c7ce", "#e6e8ec"
BLUE, GREEN, ORANGE = "#0072B2", "#009E73", "#D55E00"
_QUIET = {"size": 13, "color": "#5b6270"}
# Seven colours and nine symbols: the pairs repeat only after 63 methods.
_COLORS = (BLUE, GREEN, ORANGE, "#CC79A7", "#000000", "#56B4E9", "#E69F00")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon", "triangle-down")
_METRICS = {
    **{"sve": "SVE (nats)", "lsvr": "LSVR (nats)", "effective_rank": "effective rank", "rankme": "RankMe"},
    **{"stable_rank": "stable rank", "participation_ratio": "participation ratio", "alpha_exponent": "α exponent"},
}
_STATES = {"done": GREEN, "hit": GREEN, "running": BLUE, "waiting": GREY, "skipped": PALE, "interrupted": "#E69F00"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_LINE_HEIGHT, _LEGEND, _PANEL_TITLE = 25, 68, 24  # pixels: a line of the title, the legend's row, titles of panels

_AXIS = {
    **{"showgrid": True, "gridcolor": _GRID, "zeroline": False, "linecolor": "#9aa1ac", "automargin": True},
    **{"ticks": "outside", "ticklen": 4, "tickcolor": "#9aa1ac", "title": {"font": _QUIET, "standoff": 8}},
}
_LEGEND_PLACE = {"orientation": "h", "x": 0.003, "xref": "container", "xanchor": "left", "yref": "container"}
_TITLE_PLACE = {"x": 0.0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
pio.templates["nml"] = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": INK},
        "title": {"font": {"size": 18}, **_TITLE_PLACE},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": _COLORS,
        "hoverlabel": {"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        "legend": {**_LEGEND_PLACE, "yanchor": "top", "title": {"font": _QUIET, "side": "top"}},
        "margin": {"l": 64, "r": 24, "b": 60},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


class Mark(NamedTuple):
    """How a series is drawn: its colour, the symbol and size of its points, the dash and width of its line."""

    color: str
    symbol: str = "circle"
    dash: str = "solid"
    width: float = 2
    size: float = 9


Marks = dict[str, Mark]
_TWO = Mark(BLUE), Mark(ORANGE, "diamond")
OTHER_MARKS: dict[str, Marks] = {
    "protocol": dict(zip(("ID", "OOD"), _TWO, strict=True)),
    "verdict": dict(zip(VERDICTS, (*_TWO, Mark(GREY, "circle-open")), strict=True)),
}


def metric_name(metric: str) -> str:
    return _METRICS.get(metric, metric)


def ratio_color(ratio: float) -> str:
    """The colour of a noise ratio (fraction): Plasma without its light end.

    >>> ratio_color(0.1)
    'rgb(143, 16, 161)'
    """
    if not 0 <= ratio <= 1:
        raise InvalidInputError(f"Expected a noise ratio in [0, 1], got {ratio}: give it as a fraction.")
    return str(sample_colorscale("Plasma", [0.75 * ratio**0.4])[0])  # the root spreads the small ratios


def ratio_marks(ratios: Iterable[float]) -> Marks:
    """The marks of noise ratios (fractions) by their labels; the random baseline (NaN) is grey, dotted and open."""
    open_mark = Mark(GREY, "circle-open", "dot")
    return {ratio_label(ratio): open_mark if math.isnan(ratio) else Mark(ratio_color(ratio)) for ratio in ratios}


def method_marks(methods: Iterable[object]) -> Marks:
    """The mark of each method, by name: LP, MLP and NMTune first, then the others in alphabetical order."""
    names = {str(method) for method in methods}
    places = {name: place for place, name in enumerate((*METHODS, *sorted(names - set(METHODS))))}
    return {name: series_mark(place) for name, place in places.items() if name in names}


def series_mark(place: int) -> Mark:
    return Mark(_COLORS[place % len(_COLORS)], _SYMBOLS[place % len(_SYMBOLS)])


def state_color(state: str) -> str:
    """The colour of a run's state; states that need someone's attention share one."""
    return _STATES.get(state, ORANGE)


def as_text(text: object, longest: int | None = None) -> str:
    """Escape `text`, cut to `longest` characters, for plotly, which would read tags in labels and hovers as markup.

    In a hover's template it would put a number for `%{x}`; with MathJax on the page it would typeset what is between
    dollar signs, and leave the rest of the text out.

    >>> as_text("<b>cat</b> & dog"), as_text("credit card", 7)
    ('&lt;b&gt;cat&lt;/b&gt; &amp; dog', 'credit…')
    >>> as_text("5 $ or 6 $: %{x}")
    '5 &#36; or 6 &#36;: &#37;{x}'
    """
    words = str(text)
    if longest is not None and len(words) > longest:
        words = f"{words[: longest - 1]}…"
    return html.escape(words, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def wrap(text: object, width: int) -> str:
    """Escape `text` and break it at spaces into lines of at most `width` characters."""
    return "<br>".join(as_text(line) for line in textwrap.wrap(str(text), width, break_on_hyphens=False))


def finish(figure: go.Figure, title: str, *, height: int = 0, legend: str | None = None) -> go.Figure:
    """Give `figure` the template, its title in wrapped lines and, if it has a `legend`, each name in it once.

    `height` is that of the panels with their axes, in pixels, by default the figure's own; the rest comes on top.
    """
    height, lines = height or figure.layout.height, wrap(title, 90)
    extra_lines = lines.count("<br>")
    title_height = 16 + _LINE_HEIGHT * (extra_lines + 1)
    top = title_height + (_LEGEND + 10 if legend else 10 + _PANEL_TITLE * bool(figure.layout.annotations))
    figure.update_layout(template="nml", height=height + top, margin_t=top, showlegend=legend is not None)
    # plotly centres further title lines about the first one: half a line down for each keeps them inside
    figure.update_layout(title={"text": lines, "pad": {"l": 4, "t": 12 + _LINE_HEIGHT // 2 * extra_lines}})
    figure.update_layout(legend={"title_text": (legend or "").strip(), "y": 1 - title_height / (height + top)})
    named: set[str | None] = set()
    for trace in figure.data if legend else ():
        if trace.showlegend is None:
            trace.showlegend = trace.name not in named and (trace.y is None or len(trace.y) > 0)
            named |= {trace.name} if trace.showlegend else set()
    return figure


def without_title(figure: go.Figure) -> go.Figure:
    """Take the title off a finished `figure`, with its room: for where it stands above the figure as a text."""
    spare = _LINE_HEIGHT * ((figure.layout.title.text or "").count("<br>") + 1) + 8
    height, top = figure.layout.height - spare, figure.layout.margin.t - spare
    return figure.update_layout(title=None, height=height, margin_t=top, legend_y=1 - 8 / height)
