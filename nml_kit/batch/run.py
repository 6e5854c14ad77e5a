"""Notebooks run as a batch: checked before a kernel starts, stage by stage, side by side; what is done stays done."""

import fnmatch
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nml_kit.batch.status import INTERRUPTED, PART_FAILED, STATUS, RunStatus, current_status, write_plan
from nml_kit.batch.suites import checked
from nml_kit.errors import InvalidInputError

if TYPE_CHECKING:
    from nml_kit.batch.pool import Pool

_log = logging.getLogger(__name__)


class PlanRow(NamedTuple):
    """A run of a plan, what would be done with it, and how many seconds such a run took before (None: not known)."""

    run: RunStatus
    action: Literal["hit", "run", "retry", "running"]
    seconds: float | None


def look_ahead(plan: Sequence[RunStatus], *, only: str | None = None, force: bool = False) -> list[PlanRow]:
    """Check all runs of a plan and tell, for those whose name matches `only`, what `run_suite` would do.

    Starts and writes nothing. Raises InvalidInputError or DataFileError for bad input.
    """
    plan, pattern = checked(plan), only or "*"
    patterns = (pattern, f"{pattern}/*")  # a notebook's name stands for all points of its grid
    chosen = [run for run in plan if any(fnmatch.fnmatchcase(run.name, fits) for fits in patterns)]
    if plan and not chosen:
        names = ", ".join(run.name for run in plan)
        raise InvalidInputError(f"Expected a pattern that fits a run, got {only!r}. Runs: {names}.")
    known = _known_seconds(chosen[0].plan_dir.parent) if chosen else {}
    rows = []
    for run in chosen:
        now, seconds = current_status(run.run_dir), known.get((run.notebook, run.profile))
        if now is not None and now.state == "running":
            rows.append(PlanRow(run, "running", seconds))
        elif now is not None and not force and now.is_done(run.id):
            rows.append(PlanRow(run, "hit", 0.0))
        else:
            failed = now is not None and now.id == run.id and now.state in ("failed", "timed out", "kernel died")
            rows.append(PlanRow(run, "retry" if failed else "run", seconds))
    return rows


def _known_seconds(runs: Path) -> dict[tuple[Any, ...], float]:
    """The median seconds of the runs done under a directory, by notebook and profile."""
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for path in runs.rglob(STATUS):
        status = current_status(path.parent)
        if status is not None and status.state == "done" and status.seconds is not None:
            seconds.setdefault((status.notebook, status.profile), []).append(status.seconds)
    return {key: median(values) for key, values in seconds.items()}


def run_suite(
    plan: Sequence[RunStatus],
    *,
    jobs: int = 1,
    only: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    timeout: float | None = None,
    report: Callable[[str], None] = _log.info,
    scheduler: str | None = None,
    progress: bool = False,
) -> list[RunStatus]:
    """Run a plan stage by stage, `jobs` at a time, for at most `timeout` seconds each; what is done is a "hit".

    All parameters and profiles are checked before the first kernel starts. A failed run does not stop the others of
    its stage; those of later stages are "skipped" unless `keep_going`. `report` gets a line when something happens.
    The plan is noted in plan.json. `scheduler` is the address of a Dask scheduler, on whose workers the runs then are
    executed. `progress` shows what a run that is alone writes to stderr.
    Raises InvalidInputError or DataFileError for bad input, before anything starts.
    """
    if jobs < 1:
        raise InvalidInputError(f"Expected jobs of at least 1, got {jobs}.")
    if timeout is not None and not timeout > 0:
        raise InvalidInputError(f"Expected a timeout above 0 seconds, got {timeout}.")
    plan = checked(plan)
    rows = look_ahead(plan, only=only, force=force)
    todo = [row.run for row in rows if row.action != "hit"]
    results = {row.run.name: row.run.ended("hit") for row in rows if row.action == "hit"}
    if todo:
        from nml_kit.pages import read_notebook  # with nbformat, which takes over a second to load

        for notebook in {run.notebook for run in todo}:
            read_notebook(notebook)
    for plan_dir in {run.plan_dir for run in plan}:
        write_plan(plan_dir, [run for run in plan if run.plan_dir == plan_dir])
    if todo:
        from nml_kit.batch.pool import Pool, connected  # with papermill and Dask: seconds to load

        with connected(scheduler or jobs) as client:
            options = {"force": force, "timeout": timeout, "progress": progress and len(rows) == 1}
            results |= _stage_by_stage(todo, Pool(client, report, len(todo), **options), keep_going)
    return [results[row.run.name] for row in rows if row.run.name in results]


def _stage_by_stage(runs: list[RunStatus], pool: "Pool", keep_going: bool) -> dict[str, RunStatus]:
    results: dict[str, RunStatus] = {}
    for _, group in groupby(runs, lambda run: run.stage):
        failed = [] if keep_going else [name for name, status in results.items() if status.exit_code]
        if failed:
            more = " and more" if len(failed) > 3 else ""
            reason = f"not started: {', '.join(failed[:3])}{more} did not end well"
            results |= {run.name: run.ended("skipped", reason) for run in group}
        else:
            results |= pool.execute(list(group))
        if pool.interrupts:
            break
    if pool.interrupts and suite_exit_code(list(results.values())) != INTERRUPTED:
        raise KeyboardInterrupt  # before a run had started that could say so
    return results


def suite_exit_code(results: Sequence[RunStatus]) -> int:
    """Return 0 if all runs are done, 130 if interrupted, a single run's own code, else 3."""
    codes = [result.exit_code for result in results]
    if INTERRUPTED in codes:
        return INTERRUPTED
    if len(codes) == 1:
        return codes[0]
    return PART_FAILED if any(codes) else 0
