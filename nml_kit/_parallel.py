"""Many calls side by side, in processes of one thread each, so that results do not depend on how many there are."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from tqdm import tqdm

from nml_kit._processes import launched_count


def in_parallel(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], jobs: int | None, title: str) -> None:
    """Make calls that fill the store in `jobs` processes; a bar with `title`, or none if it is empty."""
    if not calls:
        return
    if launched_count() > 1:
        # These divide each network among themselves; processes of their own would not be among them.
        jobs = 1
    with parallel_config(backend="loky", n_jobs=jobs or cpu_count(), inner_max_num_threads=1):
        done = Parallel(return_as="generator_unordered")(delayed(_on_one_thread)(*call) for call in calls)
        for _ in tqdm(done, title, len(calls), disable=not title, leave=False):
            pass


def _on_one_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Call on one thread also where joblib, with one job, stays in this process: the last bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        function(*arguments)
    finally:
        torch.set_num_threads(threads)
