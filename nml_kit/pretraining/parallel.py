"""Many calls side by side, in processes of one thread each, so that results do not depend on how many there are."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm import tqdm

from nml_kit.pretraining.distributed import launched_count


def in_parallel(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], jobs: int | None, title: str) -> None:
    """Make calls that fill the store in `jobs` processes; a bar with `title`, or none if it is empty."""
    if not calls:
        return
    if launched_count() > 1:
        # These divide each network among themselves; processes of their own would not be among them.
        jobs = 1
    own = {"initializer": _end_with, "initargs": (os.getpid(),)}
    workers = parallel_config(backend="loky", n_jobs=jobs or cpu_count(), inner_max_num_threads=1, **own)
    with warnings.catch_warnings(), workers:
        # One whose memory has grown is replaced between two calls: nothing is lost, and nothing is to be done.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
        done = Parallel(return_as="generator_unordered")(delayed(_on_one_thread)(*call) for call in calls)
        for _ in tqdm(done, title, len(calls), disable=not title, leave=False):
            pass


def _end_with(parent: int) -> None:
    """End this worker with the process that started it: it would finish its call, and hold its locks, for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, then as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on_one_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call on one thread also where joblib, with one job, stays in this process: the last bits depend on it."""
    with one_thread():
        function(*arguments)
