"""Notebooks run as a batch: checked before a kernel starts, stage by stage, side by side; what is done stays done."""

import fnmatch
import heapq
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nml_kit.batch.run import waiting_statuses, without_result
from nml_kit.batch.status import (
    DONE,
    INTERRUPTED,
    PART_FAILED,
    STATUS,
    RunStatus,
    current_status,
    is_done,
    stored_status,
    write_plan,
)
from nml_kit.batch.suites import PlannedRun
from nml_kit.errors import InvalidInputError

if TYPE_CHECKING:
    from nml_kit.batch.cluster import ClusterFile

Action = Literal["hit", "run", "retry", "running"]
_log = logging.getLogger(__name__)


class PlanRow(NamedTuple):
    """A run of a plan, what would be done with it, and how many seconds such a run took before (None: not known)."""

    run: PlannedRun
    status: RunStatus
    action: Action
    seconds: float | None


class Progress(NamedTuple):
    """Where a batch is: what just happened, the names of what runs, ended and all runs, estimated seconds left."""

    text: str
    running: tuple[str, ...]
    ended: int
    total: int
    seconds_left: float | None


def look_ahead(plan: Sequence[PlannedRun], *, only: str | None = None, force: bool = False) -> list[PlanRow]:
    """Check all runs of a plan and tell, for those whose name matches `only`, what `run_suite` would do.

    Starts and writes nothing. Raises InvalidInputError or DataFileError for bad input.
    """
    return _rows(_planned(plan), only, force)


def _planned(plan: Sequence[PlannedRun]) -> list[tuple[PlannedRun, RunStatus]]:
    """Each run, its directory absolute, with its status before anything happened; all are checked."""
    plan = [replace(run, run_dir=run.run_dir.resolve()) for run in plan]
    if len({run.run_dir for run in plan}) < len(plan):
        raise InvalidInputError("Expected a directory for each run, got two runs in one: name them differently.")
    return list(zip(plan, waiting_statuses(plan), strict=True))


def _rows(planned: list[tuple[PlannedRun, RunStatus]], only: str | None, force: bool) -> list[PlanRow]:
    pattern = only or "*"
    patterns = (pattern, f"{pattern}/*")  # a notebook's name stands for all points of its grid
    chosen = [pair for pair in planned if any(fnmatch.fnmatchcase(pair[0].name, fits) for fits in patterns)]
    if planned and not chosen:
        names = ", ".join(run.name for run, _ in planned)
        raise InvalidInputError(f"Expected a pattern that fits a run, got {only!r}. Runs: {names}.")
    actions = [_action(status, force) for _, status in chosen]
    known = _known_seconds(chosen[0][0].plan_dir.parent) if set(actions) - {"hit"} else {}
    return [
        PlanRow(run, status, action, 0.0 if action == "hit" else known.get((status.notebook, status.profile)))
        for (run, status), action in zip(chosen, actions, strict=True)
    ]


def _action(waiting: RunStatus, force: bool) -> Action:
    now = current_status(waiting.run_dir)
    if now is not None and now.state == "running":
        return "running"
    if not force and is_done(now, waiting.id):
        return "hit"
    failed = now is not None and now.id == waiting.id and now.state in ("failed", "timed out", "kernel died")
    return "retry" if failed else "run"


def _known_seconds(runs: Path) -> dict[tuple[Any, ...], float]:
    """The median seconds of the runs done under a directory, by notebook and profile."""
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for path in runs.rglob(STATUS):
        status = stored_status(path.parent)
        if status is not None and status.state == "done" and status.seconds is not None:
            seconds.setdefault((status.notebook, status.profile), []).append(status.seconds)
    return {key: median(values) for key, values in seconds.items()}


def seconds_to_go(runs: list[tuple[int, float | None]], jobs: int) -> float | None:
    """The seconds until runs, each a (stage, seconds), are through, stage by stage and `jobs` at a time.

    One whose seconds are not known counts like the mean of the others; None if none is known.

    >>> seconds_to_go([(0, 10.0), (1, 4.0), (1, None), (1, 4.0)], jobs=2)
    18.0
    """
    known = [seconds for _, seconds in runs if seconds is not None]
    if not known:
        return None if runs else 0.0
    total = 0.0
    for _, members in groupby(runs, lambda run: run[0]):
        lanes = [0.0] * jobs
        for _, seconds in members:
            heapq.heapreplace(lanes, lanes[0] + (mean(known) if seconds is None else seconds))
        total += max(lanes)
    return total


def run_suite(
    plan: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    only: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    timeout: float | None = None,
    report: Callable[[Progress], None] = lambda progress: _log.info(progress.text),
    cluster: "str | ClusterFile | None" = None,
    retries: int | None = None,
    progress: bool = False,
) -> list[RunStatus]:
    """Run a plan stage by stage, `jobs` at a time, for at most `timeout` seconds each; what is done is a "hit".

    All parameters and profiles are checked before the first kernel starts. A failed run does not stop the others of
    its stage; those of later stages are "skipped" unless `keep_going`. `report` is called when something happens. The
    plan is noted in plan.json. `cluster` is the address of a Dask scheduler, or what its cluster file says; a run whose
    worker is lost is tried again, `retries` times. `progress` shows what a run that is alone writes to stderr.
    Raises InvalidInputError or DataFileError for bad input, before anything starts.
    """
    if jobs < 1:
        raise InvalidInputError(f"Expected jobs of at least 1, got {jobs}.")
    if timeout is not None and not timeout > 0:
        raise InvalidInputError(f"Expected a timeout above 0 seconds, got {timeout}.")
    planned = _planned(plan)
    rows = _rows(planned, only, force)
    todo = [row for row in rows if row.action != "hit"]
    if todo:
        from nml_kit.pages import read_notebook  # with nbformat, which takes over a second to load

        for notebook in {row.run.notebook for row in todo}:
            read_notebook(notebook)
    for plan_dir in {run.plan_dir for run, _ in planned}:
        write_plan(plan_dir, [status for run, status in planned if run.plan_dir == plan_dir])
    results = {row.run.name: _hit(row) for row in rows if row.action == "hit"}
    if todo:
        from nml_kit.batch.cluster import connected
        from nml_kit.batch.pool import Order, Pool

        board = _Board(todo, len(rows), report)
        with connected(cluster or jobs, board.say) as client:
            pool = Pool(client, retries, Order(force, timeout, progress and len(rows) == 1), board)
            board.slots = pool.slots
            for _, members in groupby(todo, lambda row: row.run.stage):
                runs = [row.run for row in members]
                failed = [] if keep_going else [name for name, status in results.items() if status.exit_code]
                results |= {run.name: _skipped(run, failed) for run in runs} if failed else pool.execute(runs)
                if pool.interrupts:
                    break
            if pool.interrupts and suite_exit_code(list(results.values())) != INTERRUPTED:
                raise KeyboardInterrupt  # before a run had started that could say so
    return [results[row.run.name] for row in rows if row.run.name in results]


def _hit(row: PlanRow) -> RunStatus:
    status = current_status(row.run.run_dir) or row.status
    return status.model_copy(update={"state": "hit", "name": row.run.name})


def _skipped(run: PlannedRun, failed: list[str]) -> RunStatus:
    more = " and more" if len(failed) > 3 else ""
    return without_result(run, "skipped", f"not started: {', '.join(failed[:3])}{more} did not end well")


class _Board:
    """What runs and what has ended, told to `report` at each change."""

    def __init__(self, todo: list[PlanRow], total: int, report: Callable[[Progress], None]) -> None:
        self.slots, self._report, self._total = 1, report, total
        self._running: dict[str, float] = {}  # names, and since when
        self._left = {row.run.name: row for row in todo}
        self._took: dict[Path, float] = {}  # seconds of the last run done here, by notebook

    def started(self, run: PlannedRun) -> None:
        again = " again: who ran it is gone" if run.name in self._running else ""
        self._running[run.name] = time.monotonic()
        self.say(f"{run.name} started{again}")

    def ended(self, run: PlannedRun, status: RunStatus) -> None:
        self._running.pop(run.name, None)
        del self._left[run.name]
        if status.state == "done" and status.seconds is not None:
            self._took[run.notebook] = status.seconds
        after = f" after {status.seconds:.1f} s" if status.seconds is not None and status.state != "hit" else ""
        self.say(f"{run.name} {status.state}{after}" + (status.error and f": {status.error}"))

    def say(self, text: str) -> None:
        left = [(row.run.stage, self._seconds_left(name, row)) for name, row in self._left.items()]
        ended = self._total - len(self._left)
        self._report(Progress(text, tuple(self._running), ended, self._total, seconds_to_go(left, self.slots)))

    def _seconds_left(self, name: str, row: PlanRow) -> float | None:
        seconds, now = self._took.get(row.run.notebook, row.seconds), time.monotonic()
        return None if seconds is None else max(seconds - now + self._running.get(name, now), 0.0)


def suite_exit_code(results: Sequence[RunStatus]) -> int:
    """Return 0 if all runs are done, 130 if interrupted, a single run's own code, else 3."""
    codes = [result.exit_code for result in results]
    if INTERRUPTED in codes:
        return INTERRUPTED
    if len(codes) == 1:
        return codes[0]
    return PART_FAILED if any(codes) else DONE
