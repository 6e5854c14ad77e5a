"""A notebook run once in the profile of seconds, for the tests of what it writes and says."""

from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd

from nml_kit import batch
from nml_kit.export import PLOTLY_MIME

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


class Ran(NamedTuple):
    """A notebook's directory, and the outputs of its cells."""

    run_dir: Path
    outputs: list[nbformat.NotebookNode]

    @property
    def said(self) -> str:
        return "\n".join(o.data["text/markdown"] for o in self.outputs if "text/markdown" in o.get("data", {}))

    @property
    def titles(self) -> list[str]:
        figures = [o.data[PLOTLY_MIME] for o in self.outputs if PLOTLY_MIME in o.get("data", {})]
        return [figure["layout"]["title"]["text"].replace("<br>", " ") for figure in figures]

    @property
    def printed(self) -> str:
        return "\n".join(o.text for o in self.outputs if o.output_type == "stream").strip()

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.run_dir / f"{name}.parquet")


def run(name: str, run_dir: Path) -> Ran:
    result = batch.run_notebook(NOTEBOOKS / f"{name}.ipynb", profile="smoke", run_dir=run_dir)
    assert (result.exit_code, result.error) == (0, "")
    cells = nbformat.read(run_dir / "notebook.ipynb", as_version=4).cells
    return Ran(run_dir, [output for cell in cells if cell.cell_type == "code" for output in cell.outputs])
