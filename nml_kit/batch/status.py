"""What became of runs: a status.json in each run's directory, a plan.json above them, and the lock of who runs one.

Locks are flocks in hidden directories, `.locks`, beside the run directories: across hosts they need a file system that
shares them (NFS 4, Lustre with `flock`).
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import filelock
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.store import read_json, stays_inside, write_json

STATUS, PLAN = "status.json", "plan.json"
State = Literal[
    "waiting", "running", "done", "hit", "failed", "timed out", "kernel died", "interrupted", "skipped", "unreadable"
]
PART_FAILED, INTERRUPTED = 3, 130
_EXIT_CODES = {"done": 0, "hit": 0, "skipped": PART_FAILED, "interrupted": INTERRUPTED, "kernel died": 138}
_ERROR_LENGTH = 200  # characters of an error in a table


def _inside(name: str) -> str:
    if not stays_inside(name):
        raise ValueError("it leaves the directory")
    return name


class RunStatus(BaseModel, frozen=True):
    """A run as plan.json and status.json tell it: seconds, UTC times, the failing cell (1-based, in the source).

    `name` is what people call it, as "02_noise/rate=0.1": its directory below that of the plan. `source` is the file
    that was asked for; `id` hashes what determines the result; `files` are what the run left, by path in `run_dir`,
    with sizes in bytes. State "hit": it was done already; "skipped": not started, because an earlier stage failed;
    "waiting": only planned.
    """

    name: Annotated[str, AfterValidator(_inside)]
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
    started: AwareDatetime | None = None
    finished: AwareDatetime | None = None
    cell: int | None = None
    error: str = ""
    host: str = ""
    pid: int | None = None
    files: dict[Annotated[str, AfterValidator(_inside)], int] = {}

    @property
    def plan_dir(self) -> Path:
        """The directory that all runs of the plan lie in."""
        return self.run_dir.parents[len(Path(self.name).parts) - 1]

    @property
    def exit_code(self) -> int:
        """0 done, 130 interrupted, 138 kernel died, 3 not started, else 1."""
        return _EXIT_CODES.get(self.state, 1)

    @property
    def short_error(self) -> str:
        """The error on one line, cut."""
        return " ".join(self.error.split())[:_ERROR_LENGTH]

    def seconds_at(self, now: datetime) -> float | None:
        """Seconds that the run took, or has taken so far if it goes on; `now` is with a time zone."""
        if self.state != "running" or self.started is None:
            return self.seconds
        return max(0.0, (now - self.started).total_seconds())

    def ended(self, state: State, error: str = "", cell: int | None = None) -> "RunStatus":
        """The same run in another state."""
        return self.model_copy(update={"state": state, "error": error, "cell": cell})

    def is_done(self, run_id: str) -> bool:
        """Whether it is done, with this id, and all that it wrote is still there, in full."""
        try:
            complete = all((self.run_dir / name).stat().st_size == size for name, size in self.files.items())
        except OSError:
            return False
        return complete and (self.state, self.id) == ("done", run_id)

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return self.model_dump(mode="json") | {"exit_code": self.exit_code}


_RUNS = TypeAdapter(list[RunStatus])


def run_lock(run_dir: Path) -> filelock.BaseFileLock:
    """The lock that whoever executes a run holds all the while."""
    return filelock.FileLock(run_dir.parent / ".locks" / f"{run_dir.name}.lock")


def _is_held(run_dir: Path) -> bool:
    """Whether some process, this one included, executes the run now."""
    lock = run_lock(run_dir)
    if not Path(lock.lock_file).exists():  # a look leaves no lock file behind
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True


def write_status(status: RunStatus) -> None:
    """Write status.json, whole or not at all; raises StoreError."""
    write_json(status.run_dir / STATUS, status.record())


def current_status(run_dir: Path) -> RunStatus | None:
    """Read status.json, None if there is none: "unreadable" if it is not ours, "interrupted" if its runner is gone."""
    status = _stored_status(run_dir)
    if status is None or status.state != "running" or _is_held(run_dir):
        return status
    again = _stored_status(run_dir)  # it may have ended between the two looks
    return again if again != status else status.ended("interrupted", "its runner ended without a word")


def _stored_status(run_dir: Path) -> RunStatus | None:
    path = run_dir / STATUS
    if not path.exists():
        return None
    try:
        return RunStatus.model_validate({**read_json(path), "run_dir": run_dir})  # the directory may have been moved
    except (DataFileError, ValidationError, TypeError) as error:
        place = {"name": run_dir.name, "notebook": Path(), "run_dir": run_dir}
        return RunStatus(**place, state="unreadable", error=f"{path}: {error}")


def write_plan(plan_dir: Path, waiting: Sequence[RunStatus]) -> None:
    """Note what was asked for; it replaces what the same source asked for before. Raises StoreError."""
    sources, names = {status.source for status in waiting}, {status.name for status in waiting}
    kept = [old for old in _planned(plan_dir / PLAN) if old.source not in sources and old.name not in names]
    write_json(plan_dir / PLAN, {"runs": [status.record() for status in (*kept, *waiting)]})


def _planned(path: Path) -> list[RunStatus]:
    """The runs of a plan.json; [] if there is none or it is not a plan."""
    try:
        runs = _RUNS.validate_python(read_json(path)["runs"])
    except (DataFileError, ValidationError, TypeError, LookupError):
        return []
    return [run.model_copy(update={"run_dir": path.parent / run.name, "state": "waiting"}) for run in runs]


def read_statuses(runs: str | Path) -> list[RunStatus]:
    """All runs under a directory, the planned ones in the plan's order: those without a result of theirs as "waiting".

    Names are relative to `runs`. Raises InvalidInputError if there is none.
    """
    runs = Path(runs)
    planned = {run.run_dir: run for path in _visible(runs, PLAN) for run in _planned(path)}
    statuses = []
    for run_dir in dict.fromkeys([*planned, *(path.parent for path in _visible(runs, STATUS))]):
        status, plan = current_status(run_dir), planned.get(run_dir)
        if plan and (status is None or (status.state != "running" and status.id != plan.id)):
            status = plan
        if status is not None:
            statuses.append(status.model_copy(update={"name": str(run_dir.relative_to(runs))}))
    if not statuses:
        raise InvalidInputError(f"Expected runs under {runs}, found none: use `nml run` first.")
    return statuses


def _visible(runs: Path, name: str) -> list[Path]:
    paths = sorted(runs.rglob(name))
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(runs).parts)]
