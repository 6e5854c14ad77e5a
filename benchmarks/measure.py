"""How everything here is timed: in turn, within one run, as medians, beside the floor of the products alone."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache

import torch
from torch.profiler import ProfilerActivity, profile

REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One comparison: median seconds of ours and of the other, the least the machine could need, and what is aimed at.

    `target` is the ratio other/ours that is aimed at (or, with `target_floor`, the share of the floor).
    """

    what: str
    against: str
    ours: float
    other: float
    floor: float | None = None
    target: float | None = None
    target_floor: float | None = None
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict, repr=False)

    @property
    def ratio(self) -> float:
        return self.other / self.ours

    @property
    def floor_share(self) -> float | None:
        return None if self.floor is None else self.floor / self.ours

    @property
    def met(self) -> bool | None:
        if self.target is None and self.target_floor is None:
            return None
        reached = self.target is None or self.ratio >= self.target
        return reached and (self.target_floor is None or (self.floor_share or 0) >= self.target_floor)

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"ratio": self.ratio, "floor_share": self.floor_share, "met": self.met}


def in_turn(*functions: Callable[[], object], repeats: int = REPEATS, loops: int = 1) -> list[list[float]]:
    """Seconds of each function, run in turn after one warm-up each, so that a drifting machine slows all alike.

    With `loops` above 1 each time is the mean of so many calls in a row after one that is not timed: what matters of
    a training step is how it runs among its like, not with the caches that the other function left.
    """
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for store, function in zip(times, functions, strict=True):
            if loops > 1:
                function()
            gc.collect()
            started = time.perf_counter()
            for _ in range(loops):
                function()
            if repeat:
                store.append((time.perf_counter() - started) / loops)
    return times


def compare(
    what: str,
    against: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    *,
    floor: Callable[[], object] | None = None,
    scale: float = 1.0,
    other_scale: float = 1.0,
    repeats: int = REPEATS,
    loops: int = 1,
    **row: object,
) -> Row:
    """Measure a row; times are multiplied by the scales (such as 20 where one of twenty equal parts is measured)."""
    functions = [ours, other, *([floor] if floor else [])]
    times = in_turn(*functions, repeats=repeats, loops=loops)
    middle = [statistics.median(samples) for samples in times]
    return Row(
        what,
        against,
        middle[0] * scale,
        middle[1] * other_scale,
        middle[2] * scale if floor else None,
        samples={"ours": times[0], "other": times[1]},
        **row,  # type: ignore[arg-type]
    )


_KINDS = {"products": ("mm",), "AdamW": ("adamw", "AdamW"), "eigenvectors": ("eigh",)}


def where_time_goes(function: Callable[[], object], repeats: int = 5) -> str:
    """The shares of the time that torch's profiler sees: what no formulation avoids, within the function itself."""
    function()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(repeats):
            function()
    times = dict.fromkeys([*_KINDS, "all else"], 0.0)
    for event in profiled.key_averages():
        kind = next((kind for kind, words in _KINDS.items() if any(word in event.key for word in words)), "all else")
        times[kind] += event.self_cpu_time_total
    total = sum(times.values())
    return "where its time goes: " + ", ".join(f"{kind} {time / total:.0%}" for kind, time in times.items() if time)


@cache
def gemm_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square product of 2,048, the machine's own best."""
    left, right = torch.randn(2, 2048, 2048, dtype=dtype)
    seconds = statistics.median(in_turn(lambda: left @ right)[0])
    return 2 * 2048**3 / seconds


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log time against log size: 1 is linear."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(seconds, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
