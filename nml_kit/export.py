"""An executed notebook becomes one HTML file that needs no network: plotly.js inside, once, and every figure shown."""

import html
import re
import uuid
from pathlib import Path

import bleach
import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from plotly.io import to_html
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter

from nml_kit.errors import DataFileError
from nml_kit.files import replacing

PLOTLY_MIME = "application/vnd.plotly.v1+json"
_PROGRESS_LINE = re.compile(r"\d+%\|| \[\d+:\d\d[<,]")  # tqdm with and without a known total
_CURSOR_MOVE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of nested progress bars, and colours
_STYLE_BLOCK = re.compile(r"<style\b.*?</style>", re.DOTALL | re.IGNORECASE)
_TAG_NAMES = """
a abbr b blockquote br caption code col colgroup dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img kbd
li ol p pre s section small span strong sub summary sup table tbody td tfoot th thead tr u ul"""
_ATTRIBUTES = {"*": ["class", "id", "title"], "a": ["href"], "img": ["src", "alt", "width", "height"]}
_ATTRIBUTES |= {cell: ["colspan", "rowspan"] for cell in ("td", "th")}
_PROTOCOLS = ["http", "https", "mailto", "data"]  # data: images inside the page
_BUTTONS = ["sendChartToCloud", "zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
_TEMPLATE = """
{%- extends 'classic/base.html.j2' -%}
{%- block input -%}
<details><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{%- endblock input -%}
{%- block output_prompt -%}{%- endblock output_prompt -%}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data: blob:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; font-src data:; form-action 'none'">
<title>{title}</title>
<style>{style}</style>
<script>{plotly_js}</script>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
body { margin: 0; background: #fff; color: #1f2430; line-height: 1.55;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 24px 20px 80px; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.3rem; margin-top: 2.2rem; } h3 { font-size: 1.1rem; }
a { color: #0b5fa5; } code, pre { font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; }
.anchor-link, .prompt { display: none; }
details { margin: .4rem 0; } details > summary { cursor: pointer; color: #8a8f98; font-size: .8rem; }
pre { overflow-x: auto; font-size: .85rem; line-height: 1.45; margin: .3rem 0; }
details pre { background: #f6f7f9; border-radius: 6px; padding: .7rem .9rem; }
.output_stderr pre { color: #8a6d1a; } .output_error pre { background: #fdf0ef; padding: .7rem .9rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .28rem .75rem; text-align: right; border-bottom: 1px solid #e6e8ec; vertical-align: top; }
th { font-weight: 600; } thead th { border-bottom: 1px solid #9aa1ac; } .output_html { overflow-x: auto; }
figure { margin: 1rem 0; } img { max-width: 100%; }
@media print { details { display: none; } figure { break-inside: avoid; } }
"""


def export_html(notebook_path: str | Path, html_path: str | Path) -> Path:
    """Write the executed notebook as one self-contained HTML file and return its path.

    plotly.js (from the installed plotly) is inside exactly once; nothing is loaded from elsewhere, and the page's
    content policy forbids it. Figures fill the width. Code is folded away, progress bars are dropped. HTML in
    markdown and outputs is reduced to harmless tags, so a script in a caption or class name shows as text. Formulas
    are not typeset: write them in Unicode. Raises DataFileError if the file is not a notebook.
    """
    notebook_path, html_path = Path(notebook_path), Path(html_path)
    notebook = read_notebook(notebook_path)
    figures: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _readable(output, figures))]
    body, _ = HTMLExporter(raw_template=_TEMPLATE, exclude_anchor_links=True).from_notebook_node(notebook)
    body = bleach.clean(
        body, tags=set(_TAG_NAMES.split()), attributes=_ATTRIBUTES, protocols=["http", "https", "mailto", "data"]
    )
    for token, figure in figures.items():
        body = body.replace(token, figure)
    code_style = HtmlFormatter().get_style_defs(".highlight")
    page = {"title": html.escape(_title(notebook, notebook_path)), "style": _STYLE + code_style}
    text = _PAGE.format(body=body, plotly_js=get_plotlyjs() if figures else "", **page)
    with replacing(html_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return html_path


def read_notebook(path: str | Path) -> NotebookNode:
    """Read a notebook in format 4; raises DataFileError if the file is missing or not a notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, nbformat.ValidationError) as error:
        raise DataFileError(f"Expected a Jupyter notebook at {path}, got {type(error).__name__}: {error}") from error
    return notebook


def _readable(output: NotebookNode, figures: dict[str, str]) -> NotebookNode | None:
    """The output as the page shows it, or None; a figure becomes a token that `figures` maps to its HTML."""
    if output.output_type == "stream" and output.name == "stderr":
        lines = re.split(r"[\r\n]+", _CURSOR_MOVE.sub("", output.text))
        output.text = "\n".join(line for line in lines if line.strip() and not _PROGRESS_LINE.search(line))
        return output if output.text else None
    if output.output_type not in ("display_data", "execute_result"):
        return output
    if PLOTLY_MIME in output.data:
        token = f"nml-figure-{uuid.uuid4().hex}"
        figures[token] = _figure_html(output.data[PLOTLY_MIME])
        output.data = NotebookNode({"text/html": f"<div>{token}</div>"})
    elif any(mime.startswith("application/vnd.jupyter.widget") for mime in output.data):
        return None  # a widget without its kernel; `text/plain` is only its repr
    elif "text/html" in output.data:
        output.data["text/html"] = _STYLE_BLOCK.sub("", output.data["text/html"])
    return output


def _figure_html(content: NotebookNode) -> str:
    figure = {"data": content.get("data", []), "layout": content.get("layout", {})}
    for part in (figure["layout"], figure["layout"].get("template", {}).get("layout", {})):
        for size in ("height", "width"):  # plotly writes them into an attribute as they are
            if not isinstance(part.get(size, 0), int | float):
                del part[size]
    height = figure["layout"].get("height", 450)
    options = {"include_plotlyjs": False, "full_html": False, "include_mathjax": False, "validate": False}
    config = {"responsive": True, "displaylogo": False, "plotlyServerURL": "", "modeBarButtonsToRemove": _BUTTONS}
    division = to_html(figure, config=config, default_height=f"{height}px", **options)
    title = re.sub(r"<[^>]+>", " ", figure["layout"].get("title", {}).get("text", "figure"))
    return f'<figure role="img" aria-label="{html.escape(html.unescape(title))}">{division}</figure>'


def _title(notebook: NotebookNode, path: Path) -> str:
    """The first heading of the notebook, else its file name."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = (re.search(r"^#+ +(.+)$", text, re.MULTILINE) for text in texts)
    return next((match[1].strip() for match in headings if match), path.stem)
