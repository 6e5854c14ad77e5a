"""One notebook executed in the profile of seconds, and what came out of it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from nml_kit.batch import plan_notebook, run_suite
from nml_kit.pages import PLOTLY_MIME

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SMALLEST = str(Path(__file__).parent / "smallest.yaml")


@dataclass(frozen=True)
class NotebookRun:
    """What a notebook left in its run directory."""

    run_dir: Path

    @property
    def outputs(self) -> list[nbformat.NotebookNode]:
        notebook = nbformat.read(self.run_dir / "notebook.ipynb", as_version=4)
        return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]

    @property
    def said(self) -> str:
        """All sentences that the notebook computed."""
        return "\n".join(o.data["text/markdown"] for o in self.outputs if "text/markdown" in o.get("data", {}))

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [o.data[PLOTLY_MIME] for o in self.outputs if PLOTLY_MIME in o.get("data", {})]

    @property
    def titles(self) -> list[str]:
        return [figure["layout"]["title"]["text"].replace("<br>", " ") for figure in self.figures]

    def html(self, text: str) -> str:
        """The first table that holds a text."""
        tables = [o.data["text/html"] for o in self.outputs if "text/html" in o.get("data", {})]
        return next(table for table in tables if "<table" in table and text in table)

    def table(self, name: str = "rows") -> pd.DataFrame:
        return pd.read_parquet(self.run_dir / f"{name}.parquet")

    def check_page(self, figures: int) -> None:
        """As many titled figures as expected, each on the page too; nothing warned of."""
        assert len(self.titles) == figures
        assert all(self.titles)
        text = "\n".join(output.text for output in self.outputs if output.output_type == "stream")
        assert not re.search(r"warning|error|traceback", text, re.IGNORECASE), text
        assert (self.run_dir / "notebook.html").read_text().count('<div class="nml-figure"') == figures


def run_notebook(name: str, root: Path, home: Path, *, profile: str = "smoke", **params: Any) -> NotebookRun:
    """Run a notebook of the repository below `root`, with the store in `home`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NML_HOME", str(home))
        plan = plan_notebook(NOTEBOOKS / f"{name}.ipynb", runs=root, profile=profile, params=params)
        (result,) = run_suite(plan)
    assert result.exit_code == 0, result.error
    return NotebookRun(result.run_dir)
