"""Figures of pages: as HTML that plotly.js draws, and as image files that the browser of the machine draws."""

import html
import re
from pathlib import Path
from typing import Any, Literal, get_args

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io import write_image
from plotly.io.json import to_json_plotly

from nml_kit.errors import InvalidInputError, MissingDependencyError
from nml_kit.plots import without_room
from nml_kit.store import replacing

ImageFormat = Literal["png", "svg", "pdf"]
_WIDTH = 1060  # pixels, of a figure on a page
_NARROW, _WIDE = 300, 680  # pixels: a phone's, and what a figure with several panels or long texts needs
_LONGEST_LABEL, _LONGEST_NOTE, _LONGEST_LEGEND = 16, 48, 70  # characters that fit a phone
_HIGHEST = 5000  # pixels of a figure: more is a mistake of its maker
_BUTTONS = ["sendChartToCloud", "zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
_CONFIG = {"responsive": True, "displaylogo": False, "plotlyServerURL": "", "modeBarButtonsToRemove": _BUTTONS}
_TAG = re.compile("<[^>]+>")  # of plotly's few in texts
_FIGURE = Markup(
    "<figure><figcaption>{0}</figcaption>"
    '<div class="nml-figure" role="img" aria-label="{0}" style="height:{1}px;min-width:{3}px"></div>'
    '<script type="application/json">{2}</script></figure>'
)


def plain_figure(content: Any) -> dict[str, Any]:
    """Data and layout of a figure as it is stored in a notebook; what is not plotly's is left out."""
    data, layout = (content.get(name) if isinstance(content, dict) else None for name in ("data", "layout"))
    return {
        "data": data if isinstance(data, list) else [],
        "layout": without_room(layout) if isinstance(layout, dict) else {},
    }


def figure_html(figure: dict[str, Any]) -> Markup:
    """The figure in its place on a page; `figures.js` draws it."""
    height = figure["layout"].get("height")
    usable = isinstance(height, int | float) and 0 < height < _HIGHEST
    content = Markup(to_json_plotly({**figure, "config": _CONFIG}, engine="json"))  # noqa: S704 (escapes `<` and `>`)
    width = narrowest_width(figure["data"], figure["layout"])
    return _FIGURE.format(figure_title(figure), height if usable else 450, content, width)


def figure_title(figure: dict[str, Any]) -> str:
    """The figure's title as plain text, without plotly's tags; "figure" if it has none."""
    title = figure["layout"].get("title")
    text = title.get("text") if isinstance(title, dict) else title
    return " ".join(html.unescape(_TAG.sub(" ", str(text or ""))).split()) or "figure"


def narrowest_width(data: list[Any], layout: dict[str, Any]) -> int:
    """Pixels that a figure (plain data) needs: a phone's width if it has one column of panels and short texts.

    >>> narrowest_width([{"type": "bar", "x": [1, 2], "y": ["a", "b"]}], {})
    300
    >>> narrowest_width([{"type": "heatmap", "z": [[1]]}], {})
    680
    """
    traces, notes = _dicts(data), _dicts(layout.get("annotations"))
    names = {str(trace.get("name", "")) for trace in traces if trace.get("showlegend") is not False}
    columns = [trace["y"] for trace in traces if isinstance(trace.get("y"), list)]
    labels = [value for column in columns for value in column if isinstance(value, str)]
    lines = "<br>".join(str(note.get("text", "")) for note in notes).split("<br>")
    domains = {str(axis.get("domain")) for axis in _dicts([layout[key] for key in layout if key.startswith("xaxis")])}
    fits = (
        len(domains) <= 1
        and all(trace.get("type") in (None, "scatter", "bar") for trace in traces)
        and all(len(label) <= _LONGEST_LABEL for label in labels)
        and all(len(_TAG.sub("", line)) <= _LONGEST_NOTE for line in lines)
        and sum(map(len, names)) <= _LONGEST_LEGEND
    )
    return _NARROW if fits else _WIDE


def _dicts(values: Any) -> list[dict[str, Any]]:
    """The dicts in what should be a list of them: a stored figure may hold anything."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def save_figure(figure: go.Figure, path: str | Path, *, width: int = _WIDTH, scale: float = 2.0) -> Path:
    """Write `figure` as PNG, SVG or PDF, by the suffix of `path`, without its menus and sliders; return the path.

    `width` is in pixels at `scale` 1; the height is the figure's own. Raises InvalidInputError for another suffix,
    MissingDependencyError without kaleido or a browser. One figure takes some seconds, because a browser starts.

    >>> save_figure(go.Figure(), "figure.bmp")
    Traceback (most recent call last):
    nml_kit.errors.InvalidInputError: Expected a file name that ends in .png, .svg, .pdf, got 'figure.bmp'.
    """
    path = Path(path)
    image_format = path.suffix[1:].lower()
    if image_format not in get_args(ImageFormat):
        suffixes = ", ".join(f".{name}" for name in get_args(ImageFormat))
        raise InvalidInputError(f"Expected a file name that ends in {suffixes}, got {path.name!r}.")
    content = figure.to_plotly_json()
    still = go.Figure(content["data"], {**without_room(content["layout"]), "updatemenus": [], "sliders": []})
    with replacing(path) as temporary:
        try:
            write_image(still, temporary, format=image_format, width=width, scale=scale)
        except (ImportError, ValueError, RuntimeError) as error:
            raise MissingDependencyError(
                f"Expected kaleido and a Chromium or Chrome that it finds, got {type(error).__name__}: {error}. "
                "Install both (`pip install kaleido`; on Debian: `apt-get install chromium`), or set BROWSER_PATH."
            ) from error
    return path
