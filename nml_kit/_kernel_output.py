"""Inside a kernel: what a cell prints is cut there, before it floods the socket that all other messages come through.

The kernel drops messages that are not read in time, the one that says a cell ended among them. This file is run by its
path (see _kernels), so it imports nothing of nml_kit.
"""

import sys
from typing import Any

TEXT_LIMIT = 1_000_000  # characters that a cell may write to each of stdout and stderr


def load_ipython_extension(shell: Any) -> None:
    """Bound what each cell writes to stdout and to stderr."""
    for stream in (sys.stdout, sys.stderr):
        _bound(stream, shell.events, TEXT_LIMIT)


def _bound(stream: Any, events: Any, limit: int) -> None:
    """Keep the head of what a cell writes and say how much was cut; bars, which rewrite their line, are kept."""
    cell, sent, cut, telling = "", 0, 0, False

    def hook(message: Any) -> Any:
        nonlocal cell, sent, cut, telling
        text, its_cell = message["content"]["text"], message["parent_header"].get("msg_id", "")
        if its_cell != cell:
            cell, sent, cut = its_cell, 0, 0
        if telling:
            telling, shown = False, f"… {cut:,} characters were cut …\n"
        elif text.startswith("\r") and "\n" not in text:
            shown = text[-limit:]
        else:
            shown = text[: limit - sent]
            sent, first, cut = sent + len(shown), not cut, cut + len(text) - len(shown)
            if cut and first:
                shown += f"\n… a cell may print {limit:,} characters, the rest is cut …\n"
        message["content"]["text"] = shown
        return message if shown else None

    def tell(result: Any) -> None:
        nonlocal telling
        stream.flush()  # all that the cell wrote has passed the hook
        if cut:
            telling = True
            stream.write("…")
            stream.flush()

    stream.pub_thread.schedule(lambda: stream.register_hook(hook))  # hooks belong to a thread: that which sends
    events.register("post_run_cell", tell)
