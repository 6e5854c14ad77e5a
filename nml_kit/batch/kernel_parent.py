"""Executed by path in each kernel as it starts: the kernel ends with the process that started it, however that ends.

ipykernel looks once a second whether its parent is still there, which is too late for what is started again at once,
and it does not look if the parent was gone already when it began.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with_parent() -> None:
    """Have Linux kill this process when its parent is gone; end now if it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get("JPY_PARENT_PID")  # not set on Windows
    if parent and int(parent) != os.getppid():
        os._exit(1)
