"""Frozen features of a task, extracted once per backbone into the store and read memory-mapped."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from tqdm import tqdm

from nml_kit.backbones import Backbone
from nml_kit.data import Task, require_unique_ids, select_rows
from nml_kit.errors import CorruptEntryError, InvalidInputError, StoreError
from nml_kit.pretraining import Processes, launched_processes
from nml_kit.store import Store, fingerprint, read_tensors, write_tensors

# Raised whenever the same request would give other features, so that stored ones are not taken for new ones.
FEATURES_VERSION = 2
FEATURES_KIND = "features"
SHARD_ROWS = 2048
BATCH_ROWS = 256
_COLUMNS = ("values", "ids", "labels", "domains", "splits")
_START_OVER = "What was extracted before is kept until `nml store prune`, after which extraction starts over."


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a task's samples: `values` (N, D), row i of the sample `ids[i]` with its label, domain and split.

    `fingerprint` identifies backbone, inputs, transform and dtype; `values` may be memory-mapped.
    Raises InvalidInputError if the numbers of rows differ or an id repeats.
    """

    task: str
    values: Float[np.ndarray, "n d"]
    ids: NDArray[np.str_]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    domains: NDArray[np.str_]
    splits: NDArray[np.str_]
    fingerprint: str

    def __post_init__(self) -> None:
        if len({len(getattr(self, name)) for name in _COLUMNS}) != 1:
            raise InvalidInputError(
                f"Features of {self.task!r}: expected one feature row, label, domain and split per id, but got "
                f"{len(self.values)} rows for {len(self.ids)} ids."
            )
        require_unique_ids(self.ids, f"Features of {self.task!r}")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def protocol_fingerprint(self) -> str:
        """Hash of what an evaluation depends on."""
        columns = {"labels": self.labels, "splits": self.splits, "domains": self.domains}
        return fingerprint({"features": self.fingerprint, **columns})

    def select(self, *, split: str | None = None, domains: tuple[str, ...] | None = None) -> "Features":
        """The rows of one split and of some domains (copied into memory).

        Raises UnknownNameError if the split or a domain does not occur.
        """
        return self.take(select_rows(self.splits, self.domains, split=split, domains_wanted=domains))

    def take(self, rows: NDArray[Any]) -> "Features":
        """The rows of a boolean mask (N,) or of integer positions (copied into memory)."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})


def extract_features(
    task: Task,
    backbone: Backbone,
    *,
    dtype: Literal["float16", "float32"] = "float32",
    store: Store | None = None,
    progress: bool = True,
) -> Features:
    """The frozen features (N, D) of all samples of `task`: read from the store, or extracted and stored.

    They are stored by what determines them: ids and bytes of the inputs, dtype, and of the backbone its weights,
    computation (see `load_backbone`), transform, layer and settings, never a name, a path or a time, so they cannot be
    stale. Killed at any moment and called again, extraction goes on from the last whole shard.
    Several processes that `torchrun` or `accelerate launch` started share the shards, and store the same bytes as one
    with as many threads and the same device (a GPU if there is one).
    Raises DataFileError if files of the task change meanwhile;
    InvalidInputError if the backbone is not in eval mode or gives NaN, infinite or wrongly shaped features;
    ProcessFailedError if that happens in another process.
    Source: the paper's section 2 (freeze; extract penultimate features once per data set).

    >>> from nml_kit import load_backbone, load_task
    >>> features = extract_features(load_task("digits"), load_backbone("compact-resnet"), progress=False)
    >>> features.values.shape[1], features.values.dtype
    (256, dtype('float32'))
    """
    processes = launched_processes()

    def build(work: Path) -> dict[str, Any]:
        _extract_shards(task, backbone.on(processes.device), dtype, work, progress, processes)
        with processes.agreed():
            _features_key(task, backbone, dtype)  # raises if files have changed while they were read
        if not processes.leads:
            return {}
        values = _merged(task, work)
        write_tensors(work / "entry" / "features.safetensors", {"values": values, "ids": _encoded(task.ids)})
        return {"task": task.name, "backbone": backbone.name, "shape": list(values.shape), "dtype": dtype}

    key = _features_key(task, backbone, dtype)
    entry = processes.get_or_build(store or Store(), FEATURES_KIND, key, build)
    tensors = entry.tensors("features.safetensors")
    if not np.array_equal(tensors["ids"], _encoded(task.ids)):
        raise CorruptEntryError(f"{entry.path}: expected the ids of task {task.name!r}, in order, but got others.")
    columns = task.ids, task.labels, task.class_names, task.domains, task.splits
    return Features(task.name, tensors["values"], *columns, entry.digest)


def is_extracted(
    task: Task, backbone: Backbone, *, dtype: Literal["float16", "float32"] = "float32", store: Store
) -> bool:
    """Whether `extract_features` would find its result in the store."""
    return store.find(FEATURES_KIND, _features_key(task, backbone, dtype)) is not None


def _features_key(task: Task, backbone: Backbone, dtype: str) -> dict[str, Any]:
    key = {"arrow": "features", "version": FEATURES_VERSION}
    return key | {"inputs": task.fingerprint, "dtype": dtype, "backbone": backbone.key}


def _kept(work: Path) -> dict[Path, range]:
    """The files of shards and the rows that they have, in order."""
    starts = {path: int(path.stem.partition("-")[2]) for path in sorted(work.glob("shard-*.safetensors"))}
    return {path: range(start, start + len(read_tensors(path)["values"])) for path, start in starts.items()}


def _extract_shards(
    task: Task, backbone: Backbone, dtype: str, work: Path, progress: bool, processes: Processes
) -> None:
    """Write the shards that are missing, one a process at a time: an error in one is known to all after that one."""
    kept: dict[Path, range] = processes.tell(_kept(work))
    missing: list[range] = []
    size, start = backbone.shard_rows or SHARD_ROWS, 0
    for rows in [*kept.values(), range(len(task), len(task))]:
        missing += [range(first, min(first + size, rows.start)) for first in range(start, rows.start, size)]
        start = max(start, rows.stop)
    width = read_tensors(next(iter(kept)))["values"].shape[1] if kept else None
    title, quiet, total = f"features of {task.name}", not (progress and processes.leads), len(kept) + len(missing)
    with tqdm(desc=title, total=total, initial=len(kept), unit="shard", disable=quiet, leave=False) as bar:
        for first in range(0, len(missing), processes.count):
            at_once = missing[first : first + processes.count]
            with processes.agreed():
                for rows in at_once[processes.index : processes.index + 1]:
                    values = _encode_rows(task, backbone, rows, dtype, width)
                    write_tensors(work / f"shard-{rows.start:09d}.safetensors", {"values": values})
                    width = values.shape[1]
            bar.update(len(at_once))


def _merged(task: Task, work: Path) -> NDArray[np.floating]:
    """The rows of all shards, after a check that each id has one."""
    values, counts = np.zeros((0, 0)), np.zeros(len(task), dtype=int)
    for path, rows in _kept(work).items():  # one at a time: a paid service's are many
        part = read_tensors(path)["values"]
        values = values if values.size else np.zeros((len(task), part.shape[1]), part.dtype)
        if part.shape[1] != values.shape[1]:
            raise StoreError(
                f"Features of {task.name!r}: expected {values.shape[1]} in each row in {work}, got {part.shape[1]} "
                f"from {str(task.ids[rows.start])!r} on. {_START_OVER}"
            )
        values[rows.start : rows.stop] = part
        counts[rows.start : rows.stop] += 1
    for row in np.flatnonzero(counts != 1):
        raise StoreError(
            f"Features of {task.name!r}: expected one row in {work} for each of {len(task)} ids, but got {counts[row]} "
            f"for {str(task.ids[row])!r} ({(counts != 1).sum()} ids are wrong); all processes must share the store. "
            "Run `nml store prune`, then again."
        )
    return values


def _encode_rows(task: Task, backbone: Backbone, rows: range, dtype: str, width: int | None) -> NDArray[np.floating]:
    """Features (n, `width`) of some rows; None is any width, the same for all."""
    batches: list[NDArray[np.floating]] = []
    for start in range(rows.start, rows.stop, BATCH_ROWS):
        batches.append(backbone(_inputs(task, backbone, start, min(start + BATCH_ROWS, rows.stop))).numpy())
        width = width or batches[-1].shape[1]
        if batches[-1].shape[1] != width:
            raise InvalidInputError(
                f"Backbone {backbone.name!r}: expected {width} features, as of the samples before, got "
                f"{batches[-1].shape[1]} from {str(task.ids[start])!r} of {task.name!r} on; it has changed. "
                f"{_START_OVER}"
            )
    with np.errstate(over="ignore"):  # an overflow of float16 becomes an infinity, which is reported below
        values = np.concatenate(batches).astype(dtype)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise InvalidInputError(
            f"Backbone {backbone.name!r}: expected finite features, but got NaN or infinity for sample "
            f"{str(task.ids[rows.start + int(bad.argmax())])!r} of {task.name!r} as {dtype}; check the weights and the "
            "transform, or extract as float32."
        )
    return values


def _inputs(task: Task, backbone: Backbone, start: int, stop: int) -> Any:
    """The inputs of some rows; encoded images one by one, so that no more than one is held before it is made small."""
    # What is not made smaller is small already, and goes faster together.
    is_kept = getattr(backbone.transform, "resize", 0) is None
    if backbone.transform is None or is_kept or task.image_data is None or task.image_data.dtype != object:
        return task.inputs(slice(start, stop))
    return (task.inputs(slice(row, row + 1))[0] for row in range(start, stop))


def _encoded(ids: NDArray[np.str_]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(ids.tolist()).encode(), dtype=np.uint8)
