"""Notebooks run as a batch: parameters checked before a kernel starts, results in a directory, status written last."""

import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import papermill
import yaml
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from pydantic import BaseModel, Field, ValidationError
from traitlets import default
from traitlets.config import Config

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.export import export_html, read_notebook
from nml_kit.files import write_json
from nml_kit.look import ratio_label
from nml_kit.parameters import check_parameters, notebook_parameters

DONE, FAILED, PART_FAILED, INTERRUPTED, KERNEL_DIED = 0, 1, 3, 130, 138
_STATES = {DONE: "done", FAILED: "failed", INTERRUPTED: "interrupted", KERNEL_DIED: "kernel died"}
_UNFINISHED, _KERNEL_LOG = "unfinished.ipynb", "kernel.log"
_RUN_FILES = ("status.json", "notebook.ipynb", "notebook.html", _UNFINISHED, _KERNEL_LOG)
_KERNEL_STARTS = 3
_NO_START = re.compile(r"before replying to kernel_info|didn't respond in \d+ seconds|Address already in use")
_log = logging.getLogger(__name__)


class SuiteEntry(BaseModel, frozen=True, extra="forbid"):
    """One notebook of a suite, its path relative to the suite file, and the parameters that differ from its own."""

    notebook: str
    params: dict[str, Any] = {}


class Suite(BaseModel, frozen=True, extra="forbid"):
    """Notebooks to run one after the other with one profile."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    profile: str
    notebooks: tuple[SuiteEntry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedRun:
    """One notebook to run: its path, profile (None: the notebook's own), parameters and run directory."""

    notebook: Path
    profile: str | None
    params: dict[str, Any]
    run_dir: Path


@dataclass(frozen=True)
class RunResult:
    """What became of a run: exit code (see design: 0, 1, 130, 138), seconds, and the failing cell and its error."""

    notebook: Path
    run_dir: Path
    exit_code: int
    seconds: float
    cell: int | None = None
    error: str = ""

    @property
    def state(self) -> str:
        return _STATES[self.exit_code]


def load_suite(path: str | Path) -> Suite:
    """Read a suite from YAML; raises DataFileError or InvalidInputError if it is missing or not a suite."""
    try:
        return Suite.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"Expected a suite file at {path}, got: {error}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInputError(f"Expected YAML in {path}, got: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())
        raise InvalidInputError(
            f"Expected a suite (name, profile, notebooks: [{{notebook, params}}]) in {path}, got: {problems}."
        ) from error


def plan_suite(path: str | Path, *, runs: str | Path, profile: str | None = None) -> list[PlannedRun]:
    """List the runs of a suite file, in order, with run directories under `runs`/<suite>/<notebook>.

    Another `profile` than the suite's own goes to `runs`/<suite>-<profile>. Notebook paths may not leave the
    directory that holds the suites directory. Raises InvalidInputError or DataFileError.
    """
    path = Path(path)
    suite = load_suite(path)
    chosen = profile or suite.profile
    group = suite.name if chosen == suite.profile else f"{suite.name}-{Path(chosen).stem}"
    root = (path.parent.parent if path.parent.name == "suites" else path.parent).resolve()
    plan: list[PlannedRun] = []
    for entry in suite.notebooks:
        notebook = (path.parent / entry.notebook).resolve()
        if not notebook.is_relative_to(root):
            raise InvalidInputError(
                f"{path}: expected notebooks under {root}, got {entry.notebook!r}, which leaves it."
            )
        repeats = sum(run.notebook == notebook for run in plan)
        name = notebook.stem + (f"-{repeats + 1}" if repeats else "")
        plan.append(PlannedRun(notebook, chosen, entry.params, Path(runs) / group / name))
    return plan


def plan_notebook(
    notebook: str | Path, *, runs: str | Path, profile: str | None = None, params: dict[str, Any] | None = None
) -> list[PlannedRun]:
    """List the single run of a notebook, in `runs`/<profile>/<notebook>; None takes the notebook's own profile."""
    notebook = Path(notebook).resolve()
    defaults = notebook_parameters(read_notebook(notebook))
    group = profile or (params or {}).get("profile") or defaults.get("profile") or "none"
    return [PlannedRun(notebook, profile, params or {}, Path(runs) / Path(str(group)).stem / notebook.stem)]


def run_suite(
    plan: list[PlannedRun], *, report: Callable[[str], None] = _log.info, progress: TextIO | None = None
) -> list[RunResult]:
    """Run a plan in order; a failed run does not stop the others, an interruption does.

    All parameters and profiles are checked before the first kernel starts. `report` gets a line when a run starts and
    ends; what the notebooks write to stderr (progress bars) goes to `progress`. Raises InvalidInputError for bad input.
    """
    for run in plan:
        _prepared(run)
    results = []
    for run in plan:
        report(f"{run.notebook.name} started")
        options: dict[str, Any] = {"profile": run.profile, "params": run.params, "run_dir": run.run_dir}
        result = run_notebook(run.notebook, progress=progress, **options)
        report(
            f"{run.notebook.name} {result.state} after {result.seconds:.1f} s" + (result.error and f": {result.error}")
        )
        results.append(result)
        if result.exit_code == INTERRUPTED:
            break
    return results


def suite_exit_code(results: list[RunResult]) -> int:
    """Return 0 if all runs are done, a single run's own code, 130 if interrupted, else 3."""
    codes = [result.exit_code for result in results]
    if len(codes) == 1 or INTERRUPTED in codes:
        return codes[-1]
    return PART_FAILED if any(codes) else DONE


def run_notebook(
    notebook: str | Path,
    *,
    profile: str | None = None,
    params: dict[str, Any] | None = None,
    run_dir: str | Path,
    progress: TextIO | None = None,
) -> RunResult:
    """Execute a notebook into `run_dir`: notebook.ipynb, notebook.html, what the notebook writes, status.json last.

    A run without status.json is not finished. Earlier results in `run_dir` are removed first. The kernel is this very
    Python. A failing cell is a result, not an exception; raises InvalidInputError or DataFileError for bad input.
    """
    run = PlannedRun(Path(notebook).resolve(), profile, params or {}, Path(run_dir).resolve())
    node, values = _prepared(run)
    run.run_dir.mkdir(parents=True, exist_ok=True)
    for stale in [*(run.run_dir / name for name in _RUN_FILES), *run.run_dir.glob("*.parquet")]:
        stale.unlink(missing_ok=True)
    started, clock = datetime.now(UTC), time.monotonic()
    code, cell, error = _execute(node, values, run.run_dir, progress)
    if (executed := run.run_dir / _UNFINISHED).exists():
        executed.replace(run.run_dir / "notebook.ipynb")
    if code == DONE:
        (run.run_dir / _KERNEL_LOG).unlink(missing_ok=True)
        export_html(run.run_dir / "notebook.ipynb", run.run_dir / "notebook.html")
    result = RunResult(run.notebook, run.run_dir, code, round(time.monotonic() - clock, 2), cell, error)
    status = {"state": result.state, "params": values, "started": started.isoformat(timespec="seconds")}
    paths = {"notebook": str(run.notebook), "run_dir": str(run.run_dir)}
    write_json(run.run_dir / "status.json", asdict(result) | status | paths)
    return result


def summary_of_runs(runs: str | Path) -> pd.DataFrame:
    """Gather the summaries that notebooks wrote under `runs` (summary.parquet) as one table of readable texts.

    Columns: noise, method, then accuracy with its 95 % interval, SVE and LSVR, in and out of distribution.
    Raises InvalidInputError if there is none, DataFileError if one cannot be read.
    """
    paths = sorted(Path(runs).rglob("summary.parquet"))
    if not paths:
        raise InvalidInputError(f"Expected results under {runs}, found no summary.parquet: use `nml run` first.")
    try:
        table = pd.concat([pd.read_parquet(path) for path in paths]).drop_duplicates()
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise DataFileError(f"Expected summaries in {', '.join(map(str, paths))}, got: {error}; run again.") from error
    shown = {"noise": table["ratio"].map(ratio_label).tolist(), "method": table["method"].tolist()}
    for protocol in ("ID", "OOD"):
        columns = zip(*(table[f"{protocol} {part}"] for part in ("accuracy", "low", "high")), strict=True)
        shown[f"{protocol} accuracy"] = [f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in columns]
        for metric in ("sve", "lsvr"):
            shown[f"{protocol} {metric.upper()}"] = table[f"{protocol} {metric}"].map("{:.3f}".format).tolist()
    return pd.DataFrame(shown)


def _prepared(run: PlannedRun) -> tuple[NotebookNode, dict[str, Any]]:
    """The notebook and all values to inject, checked: no kernel has started yet."""
    node = read_notebook(run.notebook)
    defaults = notebook_parameters(node)
    profile = {"profile": run.profile} if run.profile else {}
    values = check_parameters({**run.params, **profile}, defaults)
    if "profile" in defaults:
        from nml_kit.profiles import load_profile  # loads torch: a misspelt parameter is told before that

        name = values.get("profile", defaults["profile"])
        load_profile(name)
        if Path(name).suffix:  # a file: the kernel works in another directory
            values["profile"] = str(Path(name).resolve())
    if "run_dir" in defaults:
        values.setdefault("run_dir", str(run.run_dir.resolve()))
    return node, values


def _execute(
    node: NotebookNode, values: dict[str, Any], run_dir: Path, progress: TextIO | None
) -> tuple[int, int | None, str]:
    """Run the notebook in a kernel of this Python; return exit code, failing cell (1-based, in the source), error."""
    node.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    node.metadata.setdefault("language_info", {"name": "python"})
    target = str(run_dir / _UNFINISHED).replace("{", "{{").replace("}", "}}")  # papermill formats its paths
    for attempt in range(1, _KERNEL_STARTS + 1):
        try:
            with _kernel_options(run_dir) as options:
                papermill.execute_notebook(
                    node, target, values, kernel_name="python3", progress_bar=False, stderr_file=progress, **options
                )
            return DONE, None, ""
        except PapermillExecutionError as error:
            cell = error.cell_index + (0 if values else 1)  # papermill inserts a cell for the values
            return FAILED, cell, f"cell {cell}: {error.ename}: {error.evalue}"
        except KeyboardInterrupt:
            return INTERRUPTED, None, ""
        except DeadKernelError:
            return KERNEL_DIED, None, f"the kernel died (out of memory, or killed); see {run_dir / _KERNEL_LOG}"
        except RuntimeError as error:
            if not _NO_START.search(str(error)):
                raise
            _log.warning("Kernel start %d of %d failed: %s", attempt, _KERNEL_STARTS, error)
        time.sleep(attempt + os.getpid() % 10 / 10)  # runners that collided try again at different moments
    return KERNEL_DIED, None, f"the kernel did not start in {_KERNEL_STARTS} attempts; see {run_dir / _KERNEL_LOG}"


@contextmanager
def _kernel_options(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What papermill hands on to nbclient: a kernel of this Python in `run_dir`, on sockets of this user alone."""
    with tempfile.TemporaryDirectory(prefix="nml-") as directory:
        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its warnings are our errors, its errors our results
        connection = {"connection_file": str(Path(directory) / "kernel.json")}
        if os.name == "posix":
            connection["transport"] = "ipc"  # TCP ports are sometimes taken by another kernel that starts just now
        yield {
            "kernel_manager_class": ThisPythonManager,
            "config": Config({"ThisPythonManager": connection}),
            "resources": {"metadata": {"path": str(run_dir)}},
            "coalesce_streams": True,
        }


class ThisPythonSpec(KernelSpecManager):
    """The interpreter that runs nml, whatever kernels are installed under the name python3."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        env = {"PLOTLY_RENDERER": "plotly_mimetype"}
        return KernelSpec(argv=argv, env=env, display_name=kernel_name, language="python")


class ThisPythonManager(AsyncKernelManager):
    """Named without an underscore: traitlets takes settings only for classes with a capital first."""

    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPythonSpec()

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        with (Path(options["cwd"]) / _KERNEL_LOG).open("ab") as log:  # what the process itself says: crashes, mostly
            await super().start_kernel(**options, stdout=log, stderr=log)
