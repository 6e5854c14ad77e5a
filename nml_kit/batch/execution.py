"""One notebook in one kernel through papermill: this very Python, started again if it does not start, ended in time."""

import getpass
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets import default
from traitlets.config import Config

from nml_kit.batch.in_kernel import TEXT_LIMIT
from nml_kit.batch.status import State
from nml_kit.errors import DataFileError
from nml_kit.pages import read_notebook
from nml_kit.store import fingerprint, read_json, replacing

UNFINISHED, KERNEL_LOG = "unfinished.ipynb", "kernel.log"
_ERROR_LIMIT = 2_000  # characters
_DRAIN = 60  # seconds to read what a cell left to read when it ended
_KERNEL_STARTS = 3
_NO_START = re.compile(r"before replying to kernel_info|didn't respond in \d+ seconds|Address already in use")
_INSERTED = {"injected-parameters", "papermill-error-cell-tag"}  # tags of papermill's own cells
_START = Path(__file__).with_name("in_kernel.py")
_RUNNING: dict["ThisPythonManager", Path] = {}  # and their run directories
_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How an execution ended: state, failing cell (1-based, in the source), error."""

    state: State
    cell: int | None = None
    error: str = ""


def execute(
    node: NotebookNode,
    values: dict[str, Any],
    run_dir: Path,
    *,
    timeout: float | None,
    progress: TextIO | None,
    stop: threading.Event,
) -> Outcome:
    """Run the notebook into `run_dir`/unfinished.ipynb, for at most `timeout` seconds.

    What the notebook writes to stderr goes to `progress` too. `stop`, once set, makes any end an interruption.
    """
    node.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    node.metadata.setdefault("language_info", {"name": "python"})
    target = str(run_dir / UNFINISHED).replace("{", "{{").replace("}", "}}")  # papermill formats its paths
    options = {"kernel_name": "python3", "progress_bar": False, "iopub_timeout": _DRAIN}
    outcome = None
    for attempt in range(1, _KERNEL_STARTS + 1):
        if outcome or stop.is_set():
            break
        try:
            with _kernel_options(run_dir) as kernel:
                papermill.execute_notebook(
                    node, target, values, stderr_file=progress, timeout_func=_time_left(timeout), **options, **kernel
                )
            outcome = Outcome("done")
        except (PapermillExecutionError, CellTimeoutError, RuntimeError, KeyboardInterrupt) as error:
            outcome = _failure(error, run_dir, timeout)
            if outcome is None:
                _log.warning("Kernel start %d of %d failed: %s", attempt, _KERNEL_STARTS, error)
                stop.wait(attempt + os.getpid() % 10 / 10)  # runners that collided try again at different moments
    if stop.is_set():
        return Outcome("interrupted")
    reason = f"the kernel did not start in {_KERNEL_STARTS} attempts; see {run_dir / KERNEL_LOG}"
    return outcome or Outcome("kernel died", None, reason)


def _failure(error: BaseException, run_dir: Path, timeout: float | None) -> Outcome | None:
    """What an error of papermill means; None if the kernel did not start."""
    if isinstance(error, KeyboardInterrupt) or getattr(error, "ename", "") == "KeyboardInterrupt":
        return Outcome("interrupted")
    state: State = "failed"
    if isinstance(error, PapermillExecutionError):
        reason = f"{error.ename}: {error.evalue}"
    elif isinstance(error, CellTimeoutError) and "IOPub" in str(error):  # the kernel drops what is not read in time
        reason = "it displayed more than could be read; show less"
    elif isinstance(error, CellTimeoutError):
        state, reason = "timed out", f"not finished within {timeout:g} s"
    elif isinstance(error, DeadKernelError):
        state, reason = "kernel died", f"the kernel died (out of memory, or killed); see {run_dir / KERNEL_LOG}"
    elif _NO_START.search(str(error)):
        return None
    else:
        reason = f"{type(error).__name__}: {error}"
    cell = _cell_at_work(run_dir)
    text = f"cell {cell}: {reason}" if cell else reason
    return Outcome(state, cell, text if len(text) <= _ERROR_LIMIT else text[:_ERROR_LIMIT] + " …")


def _time_left(timeout: float | None) -> Any:
    """What nbclient asks before each cell: the seconds that are left of those for the whole run."""
    end = None if timeout is None else time.monotonic() + timeout
    return lambda cell: None if end is None else max(end - time.monotonic(), 0.001)


def _cell_at_work(run_dir: Path) -> int | None:
    """The number in the source of the cell that was started last, from what papermill saved."""
    try:
        notes = [cell["metadata"] for cell in read_json(run_dir / UNFINISHED)["cells"]]
    except (DataFileError, LookupError, TypeError):
        return None
    own = [note for note in notes if not _INSERTED & set(note.get("tags", []))]
    started = [number for number, note in enumerate(own, 1) if note.get("papermill", {}).get("start_time")]
    return started[-1] if started else None


def finish_notebook(unfinished: Path, path: Path) -> None:
    """Move an executed notebook to `path`, its streams joined and long results cut.

    (nbclient's own joining takes time that grows with the square of the length of a line.)
    """
    notebook = read_notebook(unfinished)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        streams: dict[str, NotebookNode] = {}
        outputs, cell.outputs = cell.outputs, []
        for output in outputs:
            if output.output_type != "stream":
                data = output.get("data", {})
                data |= {mime: _cut(text) for mime, text in data.items() if mime == "text/plain"}
                cell.outputs.append(output)
            elif output.name in streams:
                streams[output.name].text += output.text
            else:
                streams[output.name] = output
                cell.outputs.append(output)
        for output in streams.values():
            output.text = "\n".join(map(_as_a_terminal_shows, output.text.split("\n")))
    with replacing(path) as temporary:
        # nbformat gives each number of a figure a line of its own, which is most of a file.
        temporary.write_text(json.dumps(json.loads(nbformat.writes(notebook)), ensure_ascii=False), encoding="utf-8")
    unfinished.unlink()


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + "\n… the rest is cut …\n"


def _as_a_terminal_shows(line: str) -> str:
    """A line without what a carriage return, as of progress bars, lets the rest cover."""
    return line.rstrip("\r").rsplit("\r", 1)[-1]


@contextmanager
def _kernel_options(run_dir: Path) -> Iterator[dict[str, Any]]:
    """What papermill hands on to nbclient: a kernel of this Python in `run_dir`, on sockets of this user alone."""
    name = fingerprint([getpass.getuser(), str(run_dir)])[:8]
    sockets = Path(tempfile.gettempdir()) / f"nml-{name}"
    shutil.rmtree(sockets, ignore_errors=True)  # of a runner of this run that was killed
    sockets.mkdir(mode=0o700)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # its warnings are our errors, its errors our results
    connection = {"connection_file": str(sockets / "kernel.json")}
    if os.name == "posix" and len(os.fsencode(sockets)) <= 92:  # the path of a socket in it may have 107 bytes
        connection["transport"] = "ipc"  # TCP ports are sometimes taken by another kernel that starts just now
    try:
        yield {
            "kernel_manager_class": ThisPythonManager,
            "config": Config({"ThisPythonManager": connection}),
            "resources": {"metadata": {"path": str(run_dir)}},
            "store_widget_state": False,  # megabytes, for widgets that no page shows
        }
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


class ThisPythonSpec(KernelSpecManager):
    """The interpreter that runs nml, whatever kernels are installed under the name python3."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        start = f"__import__('runpy').run_path({str(_START)!r})['start'](get_ipython())"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += [f"--IPKernelApp.exec_lines={start}"]
        env = {"PLOTLY_RENDERER": "plotly_mimetype"}
        return KernelSpec(argv=argv, env=env, display_name=kernel_name, language="python")


class ThisPythonManager(AsyncKernelManager):
    """Named without an underscore: traitlets takes settings only for classes with a capital first."""

    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPythonSpec()

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        run_dir = Path(options["cwd"])
        with (run_dir / KERNEL_LOG).open("ab") as log:  # what the process itself says: crashes, mostly
            await super().start_kernel(**options, stdout=log, stderr=log)
        _RUNNING[self] = run_dir

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        _RUNNING.pop(self, None)
        await super().cleanup_resources(restart=restart)


def interrupt_kernels(run_dirs: Collection[Path], *, kill: bool = False) -> None:
    """Interrupt what the kernels of this process in `run_dirs` do, as Ctrl-C in a notebook; or end them."""
    for manager, run_dir in list(_RUNNING.items()):
        process = getattr(manager.provisioner, "process", None)
        if run_dir in run_dirs and process is not None and process.poll() is None:
            process.kill() if kill else process.send_signal(signal.SIGINT)
