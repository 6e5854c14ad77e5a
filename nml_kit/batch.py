"""Notebooks run as a batch: parameters checked before a kernel starts, results in a directory, status written last."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from nml_kit._kernels import KERNEL_LOG, interrupt_kernels, kernel_options
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.export import export_html, read_notebook
from nml_kit.files import write_json
from nml_kit.look import ratio_label
from nml_kit.parameters import check_parameters, notebook_parameters
from nml_kit.suites import PlannedRun

DONE, FAILED, PART_FAILED, INTERRUPTED, KERNEL_DIED = 0, 1, 3, 130, 138
_STATES = {DONE: "done", FAILED: "failed", INTERRUPTED: "interrupted", KERNEL_DIED: "kernel died"}
_UNFINISHED = "unfinished.ipynb"
_RUN_FILES = ("status.json", "notebook.ipynb", "notebook.html", _UNFINISHED, KERNEL_LOG)
_KERNEL_STARTS = 3
_NO_START = re.compile(r"before replying to kernel_info|didn't respond in \d+ seconds|Address already in use")
_log = logging.getLogger(__name__)


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


def run_suite(
    plan: list[PlannedRun],
    *,
    jobs: int = 1,
    report: Callable[[str], None] = _log.info,
    progress: TextIO | None = None,
) -> list[RunResult]:
    """Run a plan stage by stage, `jobs` at a time; a failed run does not stop the others, an interruption does.

    All parameters and profiles are checked before the first kernel starts. `report` gets a line when a run starts and
    ends; what a notebook that runs alone writes to stderr (progress bars) goes to `progress`. Raises InvalidInputError
    for bad input.
    """
    if jobs < 1:
        raise InvalidInputError(f"Expected jobs of at least 1, got {jobs}.")
    for run in plan:
        _prepared(run)
    results: list[RunResult] = []
    for _, members in groupby(plan, lambda run: run.stage):
        results += _run_stage(list(members), jobs, report, progress)
        if any(result.exit_code == INTERRUPTED for result in results):
            break
    return results


def _run_stage(
    plan: list[PlannedRun], jobs: int, report: Callable[[str], None], progress: TextIO | None
) -> list[RunResult]:
    """Run notebooks side by side, each in a kernel of its own, of which a thread here takes care."""
    jobs = min(jobs, len(plan))
    interrupted = threading.Event()

    def run_one(run: PlannedRun) -> RunResult | None:
        if interrupted.is_set():
            return None
        report(f"{run.notebook.name} started")
        options: dict[str, Any] = {"profile": run.profile, "params": run.params, "run_dir": run.run_dir}
        result = run_notebook(run.notebook, progress=progress if jobs == 1 else None, **options)
        if result.exit_code == INTERRUPTED:
            interrupted.set()
        after = f"after {result.seconds:.1f} s" + (result.error and f": {result.error}")
        report(f"{run.notebook.name} {result.state} {after}")
        return result

    if jobs == 1:
        return [result for run in plan if (result := run_one(run))]
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_one, run) for run in plan]
        try:
            wait(futures)
        except KeyboardInterrupt:
            interrupted.set()
            interrupt_kernels()
        return [result for future in futures if (result := future.result())]


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
        (run.run_dir / KERNEL_LOG).unlink(missing_ok=True)
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
            with kernel_options(run_dir) as options:
                papermill.execute_notebook(
                    node, target, values, kernel_name="python3", progress_bar=False, stderr_file=progress, **options
                )
            return DONE, None, ""
        except PapermillExecutionError as error:
            if error.ename == "KeyboardInterrupt":
                return INTERRUPTED, None, ""
            cell = error.cell_index + (0 if values else 1)  # papermill inserts a cell for the values
            return FAILED, cell, f"cell {cell}: {error.ename}: {error.evalue}"
        except KeyboardInterrupt:
            return INTERRUPTED, None, ""
        except DeadKernelError:
            return KERNEL_DIED, None, f"the kernel died (out of memory, or killed); see {run_dir / KERNEL_LOG}"
        except RuntimeError as error:
            if not _NO_START.search(str(error)):
                raise
            _log.warning("Kernel start %d of %d failed: %s", attempt, _KERNEL_STARTS, error)
        time.sleep(attempt + os.getpid() % 10 / 10)  # runners that collided try again at different moments
    return KERNEL_DIED, None, f"the kernel did not start in {_KERNEL_STARTS} attempts; see {run_dir / KERNEL_LOG}"
