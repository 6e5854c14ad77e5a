"""How long runs may take, from how long such runs took before."""

import heapq
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from nml_kit.batch.status import finished_runs


def known_seconds(runs: Path) -> dict[tuple[Any, ...], float]:
    """The median seconds of the runs done under a directory, by notebook and profile."""
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for status in finished_runs(runs):
        if status.seconds is not None:
            seconds.setdefault((status.notebook, status.profile), []).append(status.seconds)
    return {key: median(values) for key, values in seconds.items()}


def seconds_to_go(runs: list[tuple[int, float | None]], jobs: int) -> float | None:
    """The seconds until runs, each a (stage, seconds), are through, stage by stage and `jobs` at a time.

    One whose seconds are not known counts like the mean of the others; None if none is known.

    >>> seconds_to_go([(0, 10.0), (1, 4.0), (1, None), (1, 4.0)], jobs=2)
    18.0
    """
    known = [seconds for _, seconds in runs if seconds is not None]
    if not known:
        return None if runs else 0.0
    usual, total = sum(known) / len(known), 0.0
    for _, members in groupby(runs, lambda run: run[0]):
        lanes = [0.0] * jobs
        for _, seconds in members:
            heapq.heapreplace(lanes, lanes[0] + (usual if seconds is None else seconds))
        total += max(lanes)
    return total
