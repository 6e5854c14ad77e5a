"""Executed by path in each kernel as it starts, so it imports nothing of nml_kit.

What a cell prints is cut here, before it floods the socket that all other messages come through: the kernel drops
messages that are not read in time, the one that says a cell ended among them.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

TEXT_LIMIT = 1_000_000  # characters that a cell may write to each of stdout and stderr
_PAUSE = 0.05  # seconds between two messages that a stream may ask for
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def start(shell: Any) -> None:
    """End this kernel with the process that started it, and bound what its cells print."""
    if sys.platform == "linux":  # elsewhere ipykernel looks once a second
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get("JPY_PARENT_PID")  # not set on Windows
    if parent and int(parent) != os.getppid():
        os._exit(1)  # it was gone before this began
    # Plotly imports jsonschema to show a figure, which would compile grammars of internet names: 2.7 s, measured.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    for stream in (sys.stdout, sys.stderr):
        _bound(stream, shell.events)


def _bound(stream: Any, events: Any) -> None:
    """Keep the head of what a cell writes and say how much was cut; bars, which rewrite their line, do not count.

    What is flushed too often is joined: the kernel sends it in a moment by itself, and when the cell ends.
    """
    flush, written, latest = stream.flush, 0, 0.0

    def cut(message: Any) -> Any:
        nonlocal written
        content = message["content"]
        content["text"] = text = "\n".join(map(last_state, content["text"].split("\n")))
        if not text.startswith("\r") or "\n" in text:
            content["text"] = text[: max(0, TEXT_LIMIT - written)]
            written += len(text)
        return message

    def paced_flush() -> None:
        nonlocal latest
        if time.monotonic() - latest >= _PAUSE:
            flush()
            latest = time.monotonic()

    def end_cell(result: Any) -> None:
        nonlocal written
        flush()  # all that the cell wrote has passed `cut`
        more, written = written - TEXT_LIMIT, 0
        if more > 0:
            stream.write(f"\n… {more:,} characters were cut: a cell may print {TEXT_LIMIT:,} …\n")
            flush()

    stream.flush = paced_flush
    stream.pub_thread.schedule(lambda: stream.register_hook(cut))  # hooks belong to a thread: that which sends
    events.register("post_run_cell", end_cell)


def last_state(line: str) -> str:
    """A line with the last of what carriage returns made it: a message joins many states of a bar."""
    text = line.rstrip("\r")
    _, bar, state = text.rpartition("\r")
    return bar + state + line[len(text) :]
