"""Figures as files for papers and slides, drawn by the Chromium or Chrome of the machine."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import plotly.graph_objects as go
from plotly.io import write_image

from nml_kit.errors import InvalidInputError, MissingDependencyError
from nml_kit.pages.notebook import notebook_page, read_notebook
from nml_kit.plots import without_room
from nml_kit.store import replacing

ImageFormat = Literal["png", "svg", "pdf"]
_WIDTH = 1060  # pixels, of a figure on a page


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
        raise InvalidInputError(f"Expected a file name that ends in {_formats()}, got {path.name!r}.")
    still = _still(figure)
    with replacing(path) as temporary:
        try:
            write_image(still, temporary, format=image_format, width=width, scale=scale)
        except (ImportError, ValueError, RuntimeError) as error:
            raise MissingDependencyError(
                f"Expected kaleido and a Chromium or Chrome that it finds, got {type(error).__name__}: {error}. "
                "Install both (`pip install kaleido`; on Debian: `apt-get install chromium`), or set BROWSER_PATH."
            ) from error
    return path


def save_figures(notebook_path: str | Path, image_format: ImageFormat) -> list[Path]:
    """Write every figure of an executed notebook beside it, as NAME-1.png and so on, and return the paths.

    Raises DataFileError if the file is not a notebook, and as `save_figure`.
    """
    notebook_path = Path(notebook_path)
    figures: Iterable[dict[str, object]] = notebook_page(read_notebook(notebook_path), notebook_path.stem).figures
    return [
        save_figure(go.Figure(figure), notebook_path.with_name(f"{notebook_path.stem}-{number}.{image_format}"))
        for number, figure in enumerate(figures, start=1)
    ]


def _still(figure: go.Figure) -> go.Figure:
    """The figure as its controls stand, without them."""
    content = figure.to_plotly_json()
    layout = without_room(content["layout"])
    return go.Figure(content["data"], {**layout, "updatemenus": [], "sliders": []})


def _formats() -> str:
    return ", ".join(f".{name}" for name in get_args(ImageFormat))
