"""One planned run, from its check to its status.json: what a thread of a worker executes."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import filelock

from nml_kit import __version__
from nml_kit.batch.status import (
    RunStatus,
    files_in,
    is_done,
    run_lock,
    stored_status,
    this_process,
    write_status,
)
from nml_kit.errors import InvalidInputError, NMLError
from nml_kit.pages import check_parameters, notebook_choices, notebook_parameters, read_source
from nml_kit.store import explained, fingerprint
from nml_kit.study import load_profile

_log = logging.getLogger(__name__)


def checked(plan: Sequence[RunStatus]) -> list[RunStatus]:
    """Check notebooks' parameters and profiles, in a moment: nothing heavy is loaded and no kernel starts.

    The runs then hold their ids and all that is injected; a notebook's `interactive` becomes False: a run shows
    figures, not widgets. An id hashes the cells' sources and tags, all parameters but run_dir, the profile's content
    and the version of nml_kit; not the code of nml_kit itself. Raises InvalidInputError or DataFileError.
    """
    source, profile = functools.cache(read_source), functools.cache(load_profile)
    return [_checked(run, source(run.notebook), profile) for run in plan]


def _checked(run: RunStatus, source: dict[str, Any], profile: Callable[[str], Any]) -> RunStatus:
    defaults, run_dir = notebook_parameters(source), run.run_dir.resolve()
    values = check_parameters(run.params, defaults, notebook_choices(source))
    content = None
    if "profile" in defaults:
        name = values.get("profile", defaults["profile"])
        content = profile(name).model_dump(mode="json")
        if Path(name).suffix:  # a file: the kernel works in another directory
            values["profile"] = str(Path(name).resolve())
    if values.get("interactive"):
        raise InvalidInputError(f"{run.name}: widgets need a kernel that stays; open the notebook in JupyterLab.")
    values |= {"interactive": False} if "interactive" in defaults else {}
    decisive = {name: repr(value) for name, value in (defaults | values).items() if name not in ("run_dir", "profile")}
    cells = [[cell["cell_type"], cell["source"], cell["metadata"]["tags"]] for cell in source["cells"]]
    key = {"cells": cells, "values": decisive, "profile": content, "nml_kit": __version__}
    if "run_dir" in defaults:
        values.setdefault("run_dir", str(run_dir))
    profile_name = content and content["name"]
    places = {"notebook": run.notebook.resolve(), "run_dir": run_dir}
    return run.model_copy(update={"id": fingerprint(key), "params": values, "profile": profile_name, **places})


def execute_run(
    run: RunStatus,
    *,
    force: bool = False,
    timeout: float | None = None,
    progress: TextIO | None = None,
    stop: threading.Event | None = None,
    report: Callable[[str], None] = _log.info,
) -> RunStatus:
    """Execute one run into its directory, unless it is done already ("hit") and not `force`d.

    It leaves notebook.ipynb, notebook.html, what the notebook writes, and status.json, written last. Of several
    processes that execute one run, one does and the others wait, then find it done. A failure is a result, not an
    exception; raises InvalidInputError or DataFileError for bad input, StoreError if the status cannot be written.
    """
    stop = stop or threading.Event()
    with _held(run, stop, report) as held:
        (waiting,) = checked([run])  # now: it may have waited for hours
        if not held:
            return waiting.ended("interrupted")
        before = stored_status(waiting.run_dir)
        if before is not None and not force and is_done(before, waiting.id):
            return before.model_copy(update={"state": "hit", "name": run.name})
        return _executed(waiting, before, timeout, progress, stop)


@contextmanager
def _held(run: RunStatus, stop: threading.Event, report: Callable[[str], None]) -> Iterator[bool]:
    """Hold the lock of a run; False if `stop` was set before another process gave it free."""
    lock = run_lock(run.run_dir.resolve())
    path = Path(lock.lock_file)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        waits = 0
        while not lock.is_locked and not (waits and stop.is_set()):
            try:
                lock.acquire(timeout=0.5 if waits else 0)
            except filelock.Timeout:
                waits += 1
                if waits == 1:
                    report(f"{run.name} waits: another process is running it")
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _executed(
    waiting: RunStatus, before: RunStatus | None, timeout: float | None, progress: TextIO | None, stop: threading.Event
) -> RunStatus:
    from nml_kit.batch.execution import KERNEL_LOG, UNFINISHED, Outcome, execute, finish_notebook  # seconds to load
    from nml_kit.pages import export_html, read_notebook

    run_dir = waiting.run_dir
    node = read_notebook(waiting.notebook)
    with explained(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    if before is None and (run_dir / "notebook.ipynb").exists():
        raise InvalidInputError(f"Expected a directory of a run, got {run_dir} with a notebook.ipynb of your own.")
    clock, started = time.monotonic(), _now()
    running = waiting.model_copy(update={"state": "running", "started": started, **this_process()})
    write_status(running)
    if before is not None:
        _remove_results(run_dir, before, ("notebook.ipynb", "notebook.html", UNFINISHED, KERNEL_LOG))
    untouched = _stamps(run_dir)
    try:
        outcome = execute(node, waiting.params, run_dir, timeout=timeout, progress=progress, stop=stop)
        if (unfinished := run_dir / UNFINISHED).exists():
            finish_notebook(unfinished, run_dir / "notebook.ipynb")
        if outcome.state == "done":
            (run_dir / KERNEL_LOG).unlink(missing_ok=True)
            export_html(run_dir / "notebook.ipynb", run_dir / "notebook.html")
    except (OSError, NMLError) as error:  # such as a full disk
        outcome = Outcome("failed", None, f"{type(error).__name__}: {error}")
    made = [name for name, stamp in _stamps(run_dir).items() if untouched.get(name) != stamp]
    ended = {"finished": _now(), "seconds": round(time.monotonic() - clock, 2), **outcome._asdict()}
    status = running.model_copy(update=ended | {"files": {name: (run_dir / name).stat().st_size for name in made}})
    write_status(status)
    return status


def _remove_results(run_dir: Path, before: RunStatus, names: Sequence[str]) -> None:
    """Remove what an earlier run left: all that its status lists, or what one that was killed may have written."""
    stale = [run_dir / name for name in (*before.files, *names)] + [*run_dir.glob(".tmp-*")]
    if before.state == "running":
        stale += run_dir.glob("*.parquet")
    for path in stale:
        if path.resolve().is_relative_to(run_dir) and not path.is_dir():
            path.unlink(missing_ok=True)


def _stamps(run_dir: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file in the directory of a run, by its path there."""
    stats = ((path, path.lstat()) for path in files_in(run_dir))
    return {path.relative_to(run_dir).as_posix(): (stat.st_size, stat.st_mtime_ns) for path, stat in stats}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
