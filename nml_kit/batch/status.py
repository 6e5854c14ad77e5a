"""What became of runs: a status.json in each run's directory, a plan.json above them, and the lock of who runs one.

Locks are flocks in hidden directories, `.locks`, beside the run directories: across hosts they need a file system that
shares them (NFS 4, Lustre with `flock`).
"""

import os
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import filelock
from pydantic import BaseModel, Field, ValidationError, field_validator

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.store import read_json, stays_inside, write_json

STATUS, PLAN = "status.json", "plan.json"
State = Literal[
    "waiting", "running", "done", "hit", "failed", "timed out", "kernel died", "interrupted", "skipped", "unreadable"
]
DONE, FAILED, BAD_INPUT, PART_FAILED, INTERRUPTED, KERNEL_DIED = 0, 1, 2, 3, 130, 138
_EXIT_CODES = {
    "done": DONE,
    "hit": DONE,
    "skipped": PART_FAILED,
    "interrupted": INTERRUPTED,
    "kernel died": KERNEL_DIED,
}
_ERROR_LENGTH = 200  # characters of an error in a table


class RunStatus(BaseModel, frozen=True):
    """A run as plan.json and status.json tell it: seconds, UTC times, the failing cell (1-based, in the source).

    `name` is what people call it, as "02_noise/rate=0.1": its directory below that of the plan. `source` is the file
    that was asked for; `id` hashes what determines the result; `files` are what the run left, by path in `run_dir`,
    with sizes in bytes. State "hit": it was done already; "skipped": not started, because an earlier stage failed;
    "waiting": only planned.
    """

    name: str
    notebook: Path
    run_dir: Path
    state: State
    id: str = ""
    stage: int = 0
    source: Path | None = None
    resources: dict[str, Any] = {}
    params: dict[str, Any] = {}
    profile: str | None = None
    seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    started: str = ""
    finished: str = ""
    cell: int | None = None
    error: str = ""
    host: str = ""
    pid: int | None = None
    files: dict[str, int] = {}

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, int]) -> dict[str, int]:
        if outside := [name for name in files if not stays_inside(name)]:
            raise ValueError(f"a file outside the run's directory: {outside[0]!r}")
        return files

    @property
    def plan_dir(self) -> Path:
        """The directory that all runs of the plan lie in."""
        return self.run_dir.parents[len(Path(self.name).parts) - 1]

    @property
    def exit_code(self) -> int:
        """0 done, 130 interrupted, 138 kernel died, 3 not started, else 1."""
        return _EXIT_CODES.get(self.state, FAILED)

    @property
    def short_error(self) -> str:
        """The error on one line, cut."""
        return " ".join(self.error.split())[:_ERROR_LENGTH]

    def seconds_at(self, now: datetime) -> float | None:
        """Seconds that the run took, or has taken so far if it goes on; `now` is with a time zone."""
        if self.state != "running":
            return self.seconds
        try:
            started = datetime.fromisoformat(self.started)
        except ValueError:
            return None
        return max(0.0, (now - (started if started.tzinfo else started.replace(tzinfo=UTC))).total_seconds())

    def ended(self, state: State, error: str = "") -> "RunStatus":
        """The same run in another state."""
        return self.model_copy(update={"state": state, "error": error})

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return self.model_dump(mode="json") | {"exit_code": self.exit_code}


class _PlanFile(BaseModel, frozen=True):
    runs: tuple[RunStatus, ...]


def this_process() -> dict[str, Any]:
    """Who runs: host and process id, for a status."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def run_lock(run_dir: Path) -> filelock.BaseFileLock:
    """The lock that whoever executes a run holds all the while."""
    return filelock.FileLock(run_dir.parent / ".locks" / f"{run_dir.name}.lock")


def is_held(run_dir: Path) -> bool:
    """Whether some process, this one included, executes the run now."""
    lock = run_lock(run_dir)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


def write_status(status: RunStatus) -> None:
    """Write status.json, whole or not at all; raises StoreError."""
    write_json(status.run_dir / STATUS, status.record())


def stored_status(run_dir: Path) -> RunStatus | None:
    """Read status.json as written, None if there is none; one that is not ours has state "unreadable"."""
    path = run_dir / STATUS
    if not path.exists():
        return None
    try:
        content = read_json(path)
        return RunStatus.model_validate({**content, "run_dir": run_dir})  # the directory may have been moved
    except (DataFileError, ValidationError, TypeError) as error:
        unknown = {"name": run_dir.name, "notebook": Path(), "run_dir": run_dir}
        return RunStatus(**unknown, state="unreadable", error=f"{path}: {error}")


def current_status(run_dir: Path) -> RunStatus | None:
    """Like `stored_status`, but what runs no more though it says so is "interrupted"."""
    status = stored_status(run_dir)
    if status is None or status.state != "running" or is_held(run_dir):
        return status
    again = stored_status(run_dir)  # it may have ended between the two looks
    if again != status:
        return again
    return status.ended("interrupted", "its runner ended without a word")


def is_done(status: RunStatus | None, run_id: str) -> bool:
    """Whether the run with this id is done and all that it wrote is still there, in full."""
    if status is None or status.state != "done" or status.id != run_id:
        return False
    return all(_size(status.run_dir / name) == size for name, size in status.files.items())


def write_plan(plan_dir: Path, waiting: Sequence[RunStatus]) -> None:
    """Note what was asked for; it replaces what the same source asked for before. Raises StoreError."""
    sources, names = {status.source for status in waiting}, {status.name for status in waiting}
    kept = [old for old in _planned(plan_dir / PLAN) if old.source not in sources and old.name not in names]
    write_json(plan_dir / PLAN, {"runs": [status.record() for status in (*kept, *waiting)]})


def read_statuses(runs: str | Path) -> list[RunStatus]:
    """All runs under a directory, the planned ones in the plan's order: those without a result of theirs as "waiting".

    Names are relative to `runs`. Raises InvalidInputError if there is none.
    """
    runs = Path(runs)
    statuses: dict[Path, RunStatus] = {}
    for path in _visible(runs, PLAN):
        for planned in _planned(path):
            status = current_status(planned.run_dir)
            outdated = status is None or (status.state != "running" and status.id != planned.id)
            statuses[planned.run_dir] = planned if outdated or status is None else status
    for path in _visible(runs, STATUS):
        if path.parent not in statuses and (status := current_status(path.parent)) is not None:
            statuses[path.parent] = status
    if not statuses:
        raise InvalidInputError(f"Expected runs under {runs}, found none: use `nml run` first.")
    return [status.model_copy(update={"name": str(path.relative_to(runs))}) for path, status in statuses.items()]


def run_statuses(runs: str | Path) -> list[RunStatus]:
    """As `read_statuses`, but none if none is planned yet; raises InvalidInputError if there is no such directory."""
    if not Path(runs).is_dir():
        raise InvalidInputError(f"Expected a directory of runs, but there is none at {runs}; check the path.")
    try:
        return read_statuses(runs)
    except InvalidInputError:
        return []


def _planned(path: Path) -> list[RunStatus]:
    """The runs of a plan.json, in directories below its own; [] if there is none or it is not a plan."""
    try:
        runs = _PlanFile.model_validate(read_json(path)).runs
    except (DataFileError, ValidationError):
        return []
    inside = [run for run in runs if stays_inside(run.name)]
    return [run.model_copy(update={"run_dir": path.parent / run.name, "state": "waiting"}) for run in inside]


def _visible(runs: Path, name: str) -> list[Path]:
    paths = sorted(runs.rglob(name))
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(runs).parts)]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def files_in(run_dir: Path) -> Iterator[Path]:
    """The files of a run, without status.json, what is hidden, and other runs' directories inside."""
    for root, directories, names in os.walk(run_dir):
        here = Path(root)
        directories[:] = sorted(d for d in directories if d[0] != "." and not (here / d / STATUS).exists())
        yield from (here / name for name in sorted(names) if name[0] != "." and name not in (STATUS, PLAN))
