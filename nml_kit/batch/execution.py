"""One notebook in one kernel through papermill: started again if it does not start, ended in time, its text bounded."""

import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from nml_kit.batch.kernel_output import TEXT_LIMIT
from nml_kit.batch.kernels import KERNEL_LOG, kernel_options
from nml_kit.batch.status import State
from nml_kit.errors import DataFileError
from nml_kit.store import read_json

UNFINISHED = "unfinished.ipynb"
_ERROR_LIMIT = 2_000
_DRAIN = 60  # seconds to read what a cell left to read when it ended
_KERNEL_STARTS = 3
_NO_START = re.compile(r"before replying to kernel_info|didn't respond in \d+ seconds|Address already in use")
_ENGINE = "nml_kit"
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
    timeout: float | None = None,
    progress: TextIO | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """Run the notebook in a kernel of this Python into `run_dir`/unfinished.ipynb, for at most `timeout` seconds.

    What the notebook writes to stderr goes to `progress` too. `stop`, once set, makes any end an interruption.
    """
    stop = stop or threading.Event()
    papermill_engines.register(_ENGINE, _Engine)
    node.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    node.metadata.setdefault("language_info", {"name": "python"})
    target = str(run_dir / UNFINISHED).replace("{", "{{").replace("}", "}}")  # papermill formats its paths
    for attempt in range(1, _KERNEL_STARTS + 1):
        if stop.is_set():
            return Outcome("interrupted")
        try:
            with kernel_options(run_dir) as options:
                papermill.execute_notebook(
                    node, target, values, engine_name=_ENGINE, kernel_name="python3", progress_bar=False,
                    stderr_file=progress, timeout_func=_time_left(timeout),
                    iopub_timeout=_DRAIN, **options,
                )  # fmt: skip
            return Outcome("interrupted" if stop.is_set() else "done")
        except PapermillExecutionError as error:
            if error.ename == "KeyboardInterrupt" or stop.is_set():
                return Outcome("interrupted")
            return _failed("failed", _source_cell(node, values, error.cell_index), f"{error.ename}: {error.evalue}")
        except KeyboardInterrupt:
            return Outcome("interrupted")
        except CellTimeoutError as error:
            if "IOPub" in str(error):  # messages were lost: the kernel drops what is not read in time
                return _failed("failed", _cell_at_work(run_dir), "it displayed more than could be read; show less")
            return _failed("timed out", _cell_at_work(run_dir), f"not finished within {timeout:g} s")
        except DeadKernelError:
            if stop.is_set():
                return Outcome("interrupted")
            reason = f"the kernel died (out of memory, or killed); see {run_dir / KERNEL_LOG}"
            return _failed("kernel died", _cell_at_work(run_dir), reason)
        except RuntimeError as error:
            if not _NO_START.search(str(error)):
                return _failed("failed", _cell_at_work(run_dir), f"RuntimeError: {error}")
            _log.warning("Kernel start %d of %d failed: %s", attempt, _KERNEL_STARTS, error)
        stop.wait(attempt + os.getpid() % 10 / 10)  # runners that collided try again at different moments
    reason = f"the kernel did not start in {_KERNEL_STARTS} attempts; see {run_dir / KERNEL_LOG}"
    return Outcome("interrupted") if stop.is_set() else Outcome("kernel died", None, reason)


def _failed(state: State, cell: int | None, reason: str) -> Outcome:
    text = f"cell {cell}: {reason}" if cell else reason
    return Outcome(state, cell, text if len(text) <= _ERROR_LIMIT else text[:_ERROR_LIMIT] + " …")


def _time_left(timeout: float | None) -> Any:
    """What nbclient asks before each cell: the seconds that are left of those for the whole run."""
    end = None if timeout is None else time.monotonic() + timeout
    return lambda cell: None if end is None else max(end - time.monotonic(), 0.001)


def _source_cell(node: NotebookNode, values: dict[str, Any], index: int) -> int:
    """The number in the source, from 1, of the cell with this index once papermill inserted a cell for the values."""
    tagged = (number for number, cell in enumerate(node.cells) if "parameters" in cell.metadata.get("tags", []))
    inserted = values and index > next(tagged, -1) + 1
    return index if inserted else index + 1


def _cell_at_work(run_dir: Path) -> int | None:
    """The number in the source of the cell that was started last, from what papermill saved."""
    try:
        cells = read_json(run_dir / UNFINISHED)["cells"]
    except (DataFileError, LookupError, TypeError):
        return None
    own = [cell["metadata"] for cell in cells if "injected-parameters" not in cell["metadata"].get("tags", [])]
    started = [number for number, notes in enumerate(own, 1) if notes.get("papermill", {}).get("start_time")]
    return started[-1] if started else None


class _Engine(NBClientEngine):
    """papermill's own engine with another client."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, start_timeout: int = 60, input_path: Any = None, **options: Any
    ) -> NotebookNode:
        client = _BoundedClient(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, **options)
        client.on_cell_executed = lambda cell, **_: _as_a_terminal_shows(cell)
        return client.execute()


class _BoundedClient(PapermillNotebookClient):
    """Joins the texts of a cell as they come and cuts what the kernel does not: long results, errors, nested bars.

    (nbclient's own joining of streams takes time that grows with the square of the length of a line.)
    """

    def output(self, outs: list[NotebookNode], msg: Any, display_id: str | None, cell_index: int) -> Any:
        made = super().output(outs, msg, display_id, cell_index)
        if made is not None and made.output_type == "stream":
            _join_stream(outs)
        elif made is not None and made.output_type == "error":
            made.evalue, made.traceback = _head(made.evalue), [_head(line) for line in made.traceback]
        elif made is not None and "text/plain" in made.data:
            made.data["text/plain"] = _head(made.data["text/plain"])
        return made


def _join_stream(outs: list[NotebookNode]) -> None:
    """Join the last output, a stream, to the first of its name."""
    new = outs.pop()
    first = next((one for one in outs if one.output_type == "stream" and one.name == new.name), None)
    if first is None:
        outs.append(NotebookNode(new))  # a copy: what a terminal shows is `new` alone
        return
    text = first.text + new.text
    first.text = text if len(text) <= 2 * TEXT_LIMIT else _head(_rewritten(text))


def _head(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + "\n… the rest is cut …\n"


def _as_a_terminal_shows(cell: NotebookNode) -> None:
    for output in cell.outputs:
        if output.output_type == "stream":
            output.text = _rewritten(output.text)


def _rewritten(text: str) -> str:
    """The text without what a carriage return, as of progress bars, lets the rest of the line cover."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")) if "\r" in text else text
