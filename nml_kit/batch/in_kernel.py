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
_MESSAGES = 200  # that a cell may send at once; the socket holds 1,000 that are not read
_PAUSE = 0.05  # seconds between those that follow
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def start(shell: Any) -> None:
    """End this kernel with the process that started it, and bound what its cells print."""
    _end_with_parent()
    for stream in (sys.stdout, sys.stderr):
        _bound(stream, shell.events)


def _end_with_parent() -> None:
    """Linux kills this process at once when its parent is gone; elsewhere ipykernel looks once a second."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get("JPY_PARENT_PID")  # not set on Windows
    if parent and int(parent) != os.getppid():
        os._exit(1)  # it was gone before this began


def _bound(stream: Any, events: Any) -> None:
    """Keep the head of what a cell writes and say how much was cut; bars, which rewrite their line, are kept.

    Where messages come too fast to be read their texts are joined, for a moment or until the cell ends.
    """
    cell, sent, cut, telling = "", 0, 0, False
    held, messages, latest = "", 0, 0.0

    def hook(message: Any) -> Any:
        nonlocal cell, sent, cut, telling, held, messages, latest
        text, its_cell = message["content"]["text"], message["parent_header"].get("msg_id", "")
        if its_cell != cell:
            cell, sent, cut, held, messages = its_cell, 0, 0, "", 0
        ending = telling
        if ending:
            held += f"… {cut:,} characters were cut …\n" if cut else ""
            telling, cut = False, 0
        elif text.startswith("\r") and "\n" not in text:
            held = held[: held.rfind("\n") + 1] + text[-TEXT_LIMIT:]
        else:
            shown = text[: TEXT_LIMIT - sent]
            first = not cut
            sent, cut = sent + len(shown), cut + len(text) - len(shown)
            held += shown
            held += f"\n… a cell may print {TEXT_LIMIT:,} characters, the rest is cut …\n" if cut and first else ""
        now = time.monotonic()
        if not held or (messages > _MESSAGES and now - latest < _PAUSE and not ending):
            return None
        message["content"]["text"], held, messages, latest = held, "", messages + 1, now
        return message

    def tell(result: Any) -> None:
        nonlocal telling
        stream.flush()  # all that the cell wrote has passed the hook
        if cut or held:
            telling = True
            stream.write("…")
            stream.flush()

    stream.pub_thread.schedule(lambda: stream.register_hook(hook))  # hooks belong to a thread: that which sends
    events.register("post_run_cell", tell)
