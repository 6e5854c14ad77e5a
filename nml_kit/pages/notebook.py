"""An executed notebook becomes one HTML file that needs no network: plotly.js inside, once, and every figure shown."""

import functools
import hashlib
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import nh3
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter

from nml_kit.errors import DataFileError
from nml_kit.pages.figures import ImageFormat, figure_html, plain_figure, save_figure
from nml_kit.pages.parameters import notebook_parameters
from nml_kit.pages.tables import mark_text_columns
from nml_kit.store import replacing

PLOTLY_MIME = "application/vnd.plotly.v1+json"
_PROGRESS_LINE = re.compile(r"\d+%\|| \[\d+:\d\d[<,]")  # tqdm with and without a known total
_CURSOR_MOVE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of nested progress bars, and colours
_TAGS = nh3.ALLOWED_TAGS | {"section", "tfoot"}
_ATTRIBUTES = nh3.ALLOWED_ATTRIBUTES | {"*": {"class", "id", "title"}}
_LINKS = ("#", "http://", "https://", "mailto:")  # no other file travels with the page
_CODE_STYLES = ("default", "github-dark")
_TOKEN = re.compile(r"nml-figure-[0-9a-f]{32}")
_TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{%- block input -%}
<details><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{%- endblock input -%}
{%- block output_prompt -%}{%- endblock output_prompt -%}
{%- block data_javascript -%}{%- endblock data_javascript -%}
"""
_LONGEST = 60  # characters of a parameter


def export_html(notebook_path: str | Path, html_path: str | Path) -> Path:
    """Write the executed notebook as one self-contained HTML file and return its path.

    plotly.js (from the installed plotly) is inside exactly once; nothing is loaded from elsewhere, and the page's
    content policy forbids it. Figures fill the width. Code is folded away, progress bars are dropped. HTML in
    markdown and outputs is reduced to harmless tags. Formulas are not typeset: write them in Unicode. Raises
    DataFileError if the file is not a notebook.
    """
    notebook_path, html_path = Path(notebook_path), Path(html_path)
    page, _ = notebook_page(read_notebook(notebook_path), notebook_path.stem)
    with replacing(html_path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return html_path


def save_figures(notebook_path: str | Path, image_format: ImageFormat) -> list[Path]:
    """Write every figure of an executed notebook beside it, as NAME-1.png and so on, and return the paths.

    Raises DataFileError if the file is not a notebook, and as `save_figure`.
    """
    notebook_path = Path(notebook_path)
    _, figures = notebook_page(read_notebook(notebook_path), notebook_path.stem)
    return [
        save_figure(go.Figure(figure), notebook_path.with_name(f"{notebook_path.stem}-{number}.{image_format}"))
        for number, figure in enumerate(figures, start=1)
    ]


def notebook_page(
    notebook: NotebookNode, name: str, *, plotly_src: str | None = None, run: Mapping[str, str] | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """The page of a notebook, which is changed, and its figures as plain data.

    plotly.js is inside, or is the shared file `plotly_src` beside it.
    `name` is the title of a notebook without a heading. Under the first heading stand the parameters of the run, as the
    notebook's own cells hold them. `run` (name, state, mood, error) becomes the line above the notebook that leads back
    to index.html.
    """
    title, params = _title(notebook, name), _params(notebook)
    figures: dict[str, dict[str, Any]] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _readable(output, figures))]
    body, _ = _exporter().from_notebook_node(notebook)
    body = nh3.clean(
        body,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=_harmless,
        link_rel=None,
        url_schemes={"http", "https", "mailto", "data"},
    )
    drawn = {token: figure_html(figure) for token, figure in figures.items()}
    body = _TOKEN.sub(lambda token: drawn.get(token[0], token[0]), body)
    before, heading_end, after = body.partition("</h1>")
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in _CODE_STYLES)
    text = render(
        "page.html.j2",
        title=title,
        params=params,
        run=run,
        heading=Markup(before + heading_end) if heading_end else "",  # noqa: S704 (cleaned above)
        body=Markup(after if heading_end else before),  # noqa: S704 (cleaned above)
        code_style=Markup(light),  # noqa: S704 (of pygments)
        dark_code_style=Markup(dark),  # noqa: S704 (of pygments)
        plotly_js=Markup(get_plotlyjs()) if figures and plotly_src is None else "",  # noqa: S704 (of plotly)
        plotly_src=plotly_src if figures else None,
    )
    return text, list(figures.values())


def render(template: str, **context: Any) -> str:
    """The text of a page from a template of ours, with all values escaped but Markup, and its scripts' nonce.

    Half a surrogate pair, which JSON may hold, becomes a question mark.
    """
    page = _templates().get_template(template)
    nonce = hashlib.sha256(page.render(context, nonce="").encode(errors="replace")).hexdigest()  # none can hold its own
    return page.render(context, nonce=nonce).encode(errors="replace").decode()


@functools.cache
def _exporter() -> HTMLExporter:
    return HTMLExporter(raw_template=_TEMPLATE, exclude_anchor_links=True)  # once: it compiles its templates


@functools.cache
def _templates() -> Environment:
    loader = PackageLoader("nml_kit.pages")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def read_notebook(path: str | Path) -> NotebookNode:
    """Read a notebook in format 4; raises DataFileError if the file is missing or not a notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, nbformat.ValidationError) as error:
        raise DataFileError(f"Expected a Jupyter notebook at {path}, got {type(error).__name__}: {error}") from error
    return notebook


def _readable(output: NotebookNode, figures: dict[str, dict[str, Any]]) -> NotebookNode | None:
    """The output as the page shows it, or None; a figure becomes a token that `figures` maps to its content."""
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]+", _CURSOR_MOVE.sub("", output.text))
        output.text = "\n".join(line for line in lines if line.strip() and not _PROGRESS_LINE.search(line))
        return output if output.text else None
    if output.output_type not in ("display_data", "execute_result"):
        return output
    if PLOTLY_MIME in output.data:
        token = f"nml-figure-{uuid.uuid4().hex}"
        figures[token] = plain_figure(output.data[PLOTLY_MIME])
        output.data = NotebookNode({"text/html": f"<div>{token}</div>"})
    elif any(mime.startswith("application/vnd.jupyter.widget") for mime in output.data):
        return None  # a widget without its kernel; `text/plain` is only its repr
    elif "<table" in output.data.get("text/html", ""):
        output.data["text/html"] = mark_text_columns(output.data["text/html"])
    return output


def _harmless(tag: str, name: str, value: str) -> str | None:
    """Images must be inside the page; links lead to its own places or to the web."""
    if name == "src":
        return value if value.startswith("data:image/") else None
    return None if name == "href" and not value.startswith(_LINKS) else value


def shown_parameters(params: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as texts, long ones cut, without empty ones and the run's directory: they say nothing."""
    shown = ((name, value) for name, value in params.items() if name != "run_dir" and value not in ("", [], None))
    texts = ((name, value if isinstance(value, str) else repr(value)) for name, value in shown)
    return [(name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…") for name, text in texts]


def _params(notebook: NotebookNode) -> list[tuple[str, str]]:
    """The parameters that the notebook ran with: its defaults, and over them what papermill injected."""
    try:
        return shown_parameters(notebook_parameters(notebook) | notebook_parameters(notebook, "injected-parameters"))
    except ValueError:  # a parameters cell of another kind, or a number too long to print: the code is on the page
        return []


def _title(notebook: NotebookNode, name: str) -> str:
    """The first heading of the notebook, else `name`."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = (re.search(r"^#+ +(.+)$", text, re.MULTILINE) for text in texts)
    return next((match[1].strip() for match in headings if match), name)
