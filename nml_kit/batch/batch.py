"""Notebooks run as a batch: checked before a kernel starts, stage by stage, side by side; what is done stays done."""

import fnmatch
import heapq
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nml_kit.batch.run import checked
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
from nml_kit.errors import InvalidInputError

if TYPE_CHECKING:
    from nml_kit.batch.cluster import ClusterFile
    from nml_kit.batch.pool import Pool

Action = Literal["hit", "run", "retry", "running"]
_log = logging.getLogger(__name__)


class PlanRow(NamedTuple):
    """A run of a plan, what would be done with it, and how many seconds such a run took before (None: not known)."""

    run: RunStatus
    action: Action
    seconds: float | None


class Progress(NamedTuple):
    """Where a batch is: what just happened, the names of what runs, how many runs have ended, and of how many."""

    text: str
    running: tuple[str, ...]
    ended: int
    total: int


def look_ahead(plan: Sequence[RunStatus], *, only: str | None = None, force: bool = False) -> list[PlanRow]:
    """Check all runs of a plan and tell, for those whose name matches `only`, what `run_suite` would do.

    Starts and writes nothing. Raises InvalidInputError or DataFileError for bad input.
    """
    return _rows(_checked_plan(plan), only, force)


def _checked_plan(plan: Sequence[RunStatus]) -> list[RunStatus]:
    plan = checked(plan)
    if len({run.run_dir for run in plan}) < len(plan):
        raise InvalidInputError("Expected a directory for each run, got two runs in one: name them differently.")
    return plan


def _rows(plan: list[RunStatus], only: str | None, force: bool) -> list[PlanRow]:
    pattern = only or "*"
    patterns = (pattern, f"{pattern}/*")  # a notebook's name stands for all points of its grid
    chosen = [run for run in plan if any(fnmatch.fnmatchcase(run.name, fits) for fits in patterns)]
    if plan and not chosen:
        names = ", ".join(run.name for run in plan)
        raise InvalidInputError(f"Expected a pattern that fits a run, got {only!r}. Runs: {names}.")
    actions = [_action(run, force) for run in chosen]
    known = _known_seconds(chosen[0].plan_dir.parent) if set(actions) - {"hit"} else {}
    return [
        PlanRow(run, action, 0.0 if action == "hit" else known.get((run.notebook, run.profile)))
        for run, action in zip(chosen, actions, strict=True)
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
    plan: Sequence[RunStatus],
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
    plan = _checked_plan(plan)
    rows = _rows(plan, only, force)
    todo = [row for row in rows if row.action != "hit"]
    if todo:
        from nml_kit.pages import read_notebook  # with nbformat, which takes over a second to load

        for notebook in {row.run.notebook for row in todo}:
            read_notebook(notebook)
    for plan_dir in {run.plan_dir for run in plan}:
        write_plan(plan_dir, [run for run in plan if run.plan_dir == plan_dir])
    results = {row.run.name: _hit(row) for row in rows if row.action == "hit"}
    if todo:
        from nml_kit.batch.cluster import connected
        from nml_kit.batch.pool import Order, Pool

        board = _Board(len(rows) - len(todo), len(rows), report)
        with connected(cluster or jobs, board.say) as client:
            pool = Pool(client, retries, Order(force, timeout, progress and len(rows) == 1), board)
            results |= _stage_by_stage([row.run for row in todo], pool, keep_going)
    return [results[row.run.name] for row in rows if row.run.name in results]


def _stage_by_stage(runs: list[RunStatus], pool: "Pool", keep_going: bool) -> dict[str, RunStatus]:
    results: dict[str, RunStatus] = {}
    for _, group in groupby(runs, lambda run: run.stage):
        members = list(group)
        failed = [] if keep_going else [name for name, status in results.items() if status.exit_code]
        results |= {run.name: _skipped(run, failed) for run in members} if failed else pool.execute(members)
        if pool.interrupts:
            break
    if pool.interrupts and suite_exit_code(list(results.values())) != INTERRUPTED:
        raise KeyboardInterrupt  # before a run had started that could say so
    return results


def _hit(row: PlanRow) -> RunStatus:
    status = current_status(row.run.run_dir) or row.run
    return status.model_copy(update={"state": "hit", "name": row.run.name})


def _skipped(run: RunStatus, failed: list[str]) -> RunStatus:
    more = " and more" if len(failed) > 3 else ""
    return run.ended("skipped", f"not started: {', '.join(failed[:3])}{more} did not end well")


class _Board:
    """What runs and what has ended, told to `report` at each change."""

    def __init__(self, ended: int, total: int, report: Callable[[Progress], None]) -> None:
        self._running: list[str] = []
        self._ended, self._total, self._report = ended, total, report

    def started(self, run: RunStatus) -> None:
        again = " again: who ran it is gone" if run.name in self._running else ""
        self._running += [] if again else [run.name]
        self.say(f"{run.name} started{again}")

    def ended(self, run: RunStatus, status: RunStatus) -> None:
        self._running = [name for name in self._running if name != run.name]
        self._ended += 1
        after = f" after {status.seconds:.1f} s" if status.seconds is not None and status.state != "hit" else ""
        self.say(f"{run.name} {status.state}{after}" + (status.error and f": {status.error}"))

    def say(self, text: str) -> None:
        self._report(Progress(text, tuple(self._running), self._ended, self._total))


def suite_exit_code(results: Sequence[RunStatus]) -> int:
    """Return 0 if all runs are done, 130 if interrupted, a single run's own code, else 3."""
    codes = [result.exit_code for result in results]
    if INTERRUPTED in codes:
        return INTERRUPTED
    if len(codes) == 1:
        return codes[0]
    return PART_FAILED if any(codes) else DONE
