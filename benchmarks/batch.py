"""A batch of notebooks by `nml run` against papermill alone: the same notebooks, parameters and store contents."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from benchmarks.measure import Row, compare

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PAPERMILL = """
import sys, papermill
for number, notebook in enumerate(sys.argv[2:]):
    parameters = {"profile": "smoke", "run_dir": f"{sys.argv[1]}/{number}"}
    papermill.execute_notebook(notebook, f"{sys.argv[1]}/{number}.ipynb", parameters, cwd=sys.argv[1])
"""


def suite_of(notebooks: list[Path], path: Path, repeats: int) -> Path:
    """A suite file that runs each notebook `repeats` times, one after another."""
    entries = [{"notebook": notebook.name} for notebook in notebooks for _ in range(repeats)]
    path.write_text(json.dumps({"name": "overhead", "profile": "smoke", "notebooks": entries}), encoding="utf-8")
    return path


def rows() -> Iterator[Row]:
    notebooks = sorted(NOTEBOOKS.glob("0[0-4]_*.ipynb"))
    with tempfile.TemporaryDirectory() as root:
        directory, fresh = Path(root), count()
        for notebook in notebooks:
            (directory / notebook.name).write_bytes(notebook.read_bytes())
        suite = suite_of(notebooks, directory / "overhead.yaml", 4)
        environment = os.environ | {"NML_HOME": str(directory / "store")}

        def run(*words: str) -> None:
            subprocess.run([sys.executable, *words], env=environment, check=True, capture_output=True)

        def by_nml() -> None:
            runs = directory / f"runs-{next(fresh)}"
            run("-c", "from nml_kit.cli import app; app()", "run", str(suite), "--runs", str(runs), "--jobs", "1")

        def by_papermill() -> None:
            out = directory / f"papermill-{next(fresh)}"
            out.mkdir()
            run("-c", PAPERMILL, str(out), *[str(notebook) for notebook in notebooks for _ in range(4)])

        yield compare(
            f"nml run --jobs 1, {4 * len(notebooks)} smoke notebooks, store filled",
            "papermill.execute_notebook in a loop, without checks, status, resumption or HTML",
            by_nml,
            by_papermill,
            target=1 / 1.1,
            repeats=3,
        )
