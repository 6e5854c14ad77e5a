"""Nothing that a data file says is executed: no payload of pickle, no program for a picture, no markup in a page."""

import io
import json
import os
import pickle
import re
import zlib
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, writes

from nml_kit import plots
from nml_kit.batch import summary_of_runs
from nml_kit.data import Task, load_task
from nml_kit.errors import DataFileError, NMLError
from nml_kit.pages import PLOTLY_MIME, export_html
from nml_kit.pages import notebook as export
from nml_kit.store import files, read_json, read_tensors

HOSTILE = ["<img src=x onerror=alert(1)>", '<a href="javascript:alert(1)">x</a>', "</script><script>alert(1)</script>"]
OUR_TAGS = re.compile(r'<br>|</?sub>|<extra></extra>|<span style="[^"<>]*">random init [\d.]+</span>')


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("name", ["x.safetensors", "x.parquet", "x.json", "x.npy"])
def test_a_pickle_under_any_name_is_refused_and_not_run(tmp_path, name):
    payload = pickle.dumps(Payload(tmp_path / "mark"))
    if name == "x.npy":
        file = io.BytesIO()
        np.save(file, np.array([Payload(tmp_path / "mark")], object), allow_pickle=True)
        payload = file.getvalue()
    for kind in ("x.safetensors", "x.json", "x.parquet", "summary.parquet"):
        (tmp_path / kind).write_bytes(payload)
    reads = [
        lambda: read_tensors(tmp_path / "x.safetensors"),
        lambda: read_json(tmp_path / "x.json"),
        lambda: load_task(str(tmp_path / "x.parquet")),
        lambda: summary_of_runs(tmp_path),
    ]
    for read in reads:
        with pytest.raises(DataFileError):
            read()
    assert not (tmp_path / "mark").exists()


def test_an_extension_type_with_a_pickle_is_not_unpickled(tmp_path):
    """As pyarrow before 14.0.1 did (CVE-2023-47248)."""
    notes = {b"ARROW:extension:name": b"arrow.py_extension_type",
             b"ARROW:extension:metadata": pickle.dumps(Payload(tmp_path / "mark"))}  # fmt: skip
    fields = [pa.field("label", pa.int64(), metadata=notes)]
    fields += [pa.field(name, pa.string(), metadata=notes) for name in ("id", "caption", "domain", "source", "split")]
    schema = pa.schema(fields, metadata={b"class_names": b'["a", "b"]'})
    rows = pa.table([[0, 1], *[["train", "test"]] * 5], schema=schema)
    pq.write_table(rows, tmp_path / "t.parquet")
    with suppress(NMLError):
        assert len(load_task(str(tmp_path / "t.parquet"))) == 2
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "data", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"", b"\x89PNG\r\n\x1a\n", "big"]
)
def test_pictures_are_decoded_by_pillow_alone_and_bounded(data):
    """Pillow calls Ghostscript for PostScript; a picture of 400 million pixels is a few kilobytes."""
    if data == "big":
        header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
        data = (
            b"\x89PNG\r\n\x1a\n" + len(header[4:]).to_bytes(4, "big") + header + zlib.crc32(header).to_bytes(4, "big")
        )
    texts = np.array(["a"])
    task = Task("t", texts, np.array([0]), ("c",), texts, texts, np.array(["train"]), np.array([data], object))
    with pytest.raises(DataFileError, match="the image of sample 'a' does not decode"):
        task.inputs(slice(None))


@pytest.mark.parametrize(
    ("name", "posix", "windows"),
    [
        ("a/b", True, True),
        ("a..b", True, True),
        ("", True, True),
        ("../a", False, False),
        ("x" * 256, False, False),
        ("x/" * 1001, False, False),
        ("a/../../b", False, False),
        ("/a", False, False),
        ("a\0", False, False),
        ("C:a", True, False),
        ("C:\\a", True, False),
        ("\\a", True, False),
        ("..\\a", True, False),
        ("\\\\host\\share\\a", True, False),
    ],
)
def test_paths_that_stay_inside(name, posix, windows, monkeypatch):
    for flavour, expected in ((PurePosixPath, posix), (PureWindowsPath, windows)):
        monkeypatch.setattr(files, "PurePath", flavour)
        assert files.stays_inside(name) == expected


def summary() -> pd.DataFrame:
    names = [*HOSTILE, "plain"]
    rows = [
        {"task": task, "protocol": protocol, "method": method, "ratio": ratio, "accuracy": 0.5 + ratio, "sve": ratio,
         "mean": 0.5, "low": 0.4, "high": 0.6, "comparison": f"{method} − LP", "domain": task, "fraction": 0.5}
        for task in names for protocol in HOSTILE[:2] for method in names for ratio in (0.0, 0.1, float("nan"))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def figures():
    rows = summary()
    once = rows.drop_duplicates(["task", "protocol", "ratio"])
    yield plots.metric_against_accuracy(once, "sve", title=HOSTILE[0])
    yield plots.accuracy_lines(rows, title=HOSTILE[1])
    yield plots.method_comparison(rows, title=HOSTILE[2])
    roles = {"panel": "comparison", "row": ("protocol", "task"), "series": "ratio"}
    yield plots.forest_plot(rows, **roles, title=HOSTILE[0])
    yield plots.confusion_matrix(np.ones((3, 3)), HOSTILE, title=HOSTILE[0])
    images = np.zeros((3, 4, 4, 3), np.uint8)
    yield plots.noise_gallery(images, [f"{name} → %{{z}}" for name in HOSTILE], title=HOSTILE[1])


def texts(value):
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(part)


@pytest.mark.parametrize("figure", [*figures()], ids=range(6))
def test_names_and_captions_are_text_in_figures(figure):
    """Plotly reads some tags in titles, labels and hover texts: none but our own may be there."""
    found = list(texts(json.loads(figure.to_json())))
    assert any("&lt;" in text for text in found)
    for text in found:
        if not text.startswith("data:image/png"):
            assert "<" not in OUR_TAGS.sub("", text), text


def test_names_and_captions_are_text_in_pages(tmp_path):
    """In markdown, tables, printed text, errors, figures and the title of the page."""
    hostile = " ".join(HOSTILE)
    figure = json.loads(plots.confusion_matrix(np.ones((3, 3)), HOSTILE, title=hostile).to_json())
    figure["layout"]["annotations"] = [{"text": hostile}]
    figure["layout"] |= dict.fromkeys(["height", "width"], '1px"><img src=x onerror=alert(1)>')
    figure["layout"]["template"]["layout"]["width"] = figure["layout"]["width"]
    table = pd.DataFrame({"caption": HOSTILE}).to_html(escape=False)
    outputs = [
        new_output("stream", text=hostile),
        new_output("display_data", {"text/html": table, "text/plain": hostile}),
        new_output("display_data", {"text/markdown": hostile}),
        new_output("display_data", {"image/svg+xml": f"<svg onload=alert(1)>{hostile}</svg>"}),
        new_output("display_data", {"application/javascript": "alert(1)"}),
        new_output("display_data", {"text/latex": hostile}),
        new_output("display_data", {PLOTLY_MIME: figure}),
        new_output("error", ename=hostile, evalue=hostile, traceback=[hostile]),
    ]
    cells = [new_markdown_cell(f"# {hostile}"), new_code_cell(f"# {hostile}", outputs=outputs)]
    (tmp_path / "n.ipynb").write_text(writes(new_notebook(cells=cells)))
    page = export_html(tmp_path / "n.ipynb", tmp_path / "n.html").read_text()
    ours = page[page.index("<title>") :].replace(export.get_plotlyjs(), "")
    parser = Tags()
    parser.feed(ours)
    assert {"figure", "details", "table"} <= {tag for tag, _ in parser.found}
    for tag, attributes in parser.found:
        assert tag not in ("svg", "iframe", "object", "embed", "base", "form", "link"), tag
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            assert not re.match(r"\s*(javascript|data:text)", value or ""), (tag, value)
    figure, code = parser.scripts  # data, and the page's own code
    assert json.loads(figure)["layout"]["annotations"][0]["text"] == hostile
    assert "Plotly.newPlot" in code


class Tags(HTMLParser):
    """The tags of a page as a browser finds them, and the texts of its scripts."""

    def __init__(self):
        super().__init__()
        self.found, self.scripts = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, attrs))

    def handle_data(self, data):
        if self.found[-1][0] == "script" and self.cdata_elem == "script" and data.strip():
            self.scripts.append(data)
