"""Inside a kernel: what a cell prints is cut there, before it floods the socket that all other messages come through.

The kernel drops messages that are not read in time, the one that says a cell ended among them. This file is run by its
path (see kernels), so it imports nothing of nml_kit.
"""

import sys
import time
from typing import Any

TEXT_LIMIT = 1_000_000  # characters that a cell may write to each of stdout and stderr
_MESSAGES = 200  # that a cell may send at once; the socket holds 1,000 that are not read
_PAUSE = 0.05  # seconds between those that follow


def load_ipython_extension(shell: Any) -> None:
    """Bound what each cell writes to stdout and to stderr."""
    for stream in (sys.stdout, sys.stderr):
        _bound(stream, shell.events, TEXT_LIMIT)


def _bound(stream: Any, events: Any, limit: int) -> None:
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
            held = held[: held.rfind("\n") + 1] + text[-limit:]
        else:
            shown = text[: limit - sent]
            sent, first, cut = sent + len(shown), not cut, cut + len(text) - len(shown)
            held += shown + (f"\n… a cell may print {limit:,} characters, the rest is cut …\n" if cut and first else "")
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
