"""Several data sets of the same classes as one task, whose domains they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nml_kit.data.images import LazyImages, Stamp
from nml_kit.data.task import Task
from nml_kit.errors import InvalidInputError
from nml_kit.store import fingerprint


@dataclass(frozen=True, eq=False)
class _Joined:
    """Images of several tasks: number i is row `row_of[i]` of part `part_of[i]`, which may hold pixels or files."""

    parts: Sequence[Any]
    part_of: NDArray[np.int64]
    row_of: NDArray[np.int64]

    def read(self, number: int) -> Any:
        return self.parts[self.part_of[number]][self.row_of[number]]

    def size(self, number: int) -> int:
        part, row = self.parts[self.part_of[number]], self.row_of[number]
        if isinstance(part, LazyImages):
            return part.source.size(int(part.numbers[row]))
        return part[row].nbytes if part.dtype != object else len(part[row])

    def stamp(self, numbers: NDArray[np.int64]) -> Stamp | None:
        stamps = [part.stamp() if isinstance(part, LazyImages) else None for part in self.parts]
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) < len(stamps):
            return None
        places = {"rows": self.row_of[numbers], "parts": self.part_of[numbers]}
        digest = fingerprint({"stamps": [stamp.digest for stamp in known], **places})
        return Stamp(digest, max(stamp.changed for stamp in known))

    def place(self, number: int) -> str:
        part, row = self.parts[self.part_of[number]], int(self.row_of[number])
        return part.place(row) if isinstance(part, LazyImages) else f"row {row} of a task"


def join_tasks(tasks: Sequence[Task], *, name: str = "") -> Task:
    """One task with the samples of all `tasks`, which have the same classes; a sample's domain is its task's name.

    So ImageNet and its variants, or a set and its shifted counterparts, are evaluated as domains of one task. Ids get
    the name before them. Raises InvalidInputError if names repeat, classes differ, or only some are images.

    >>> from nml_kit.data.arrays import task_from_arrays
    >>> one, two = (task_from_arrays(["a", "b"], [0, 1], name=name) for name in ("here", "there"))
    >>> join_tasks([one, two]).ids.tolist()[::3]
    ['here/000000000', 'there/000000001']
    """
    names = [task.name for task in tasks]
    kinds = {task.image_data is None for task in tasks}
    if len(set(names)) < len(names) or not names or len(kinds) > 1:
        raise InvalidInputError(f"Expected tasks of several names, all of images or all of texts, got {names}.")
    for task in tasks[1:]:
        if task.class_names != tasks[0].class_names:
            differing = sorted(set(task.class_names) ^ set(tasks[0].class_names))[:3] or "another order"
            raise InvalidInputError(
                f"Expected the same classes in {names[0]!r} and {task.name!r}, got {tasks[0].num_classes} and "
                f"{task.num_classes}, differing in {differing}; rename or drop classes first."
            )
    counts = [len(task) for task in tasks]
    return Task(
        name or "+".join(names),
        ids=np.array([f"{task.name}/{one}" for task in tasks for one in task.ids.tolist()]),
        labels=np.concatenate([task.labels for task in tasks]),
        class_names=tasks[0].class_names,
        captions=np.concatenate([task.captions for task in tasks]),
        domains=np.repeat(names, counts),
        splits=np.concatenate([task.splits for task in tasks]),
        image_data=None if kinds == {True} else _joined_images([task.image_data for task in tasks], counts),
    )


def _joined_images(parts: Sequence[Any], counts: Sequence[int]) -> NDArray[Any] | LazyImages:
    held = not any(isinstance(part, LazyImages) for part in parts)
    if held and len({(part.dtype, part.shape[1:]) for part in parts}) == 1:
        return np.concatenate(parts)
    rows = np.concatenate([np.arange(count) for count in counts])
    return LazyImages(_Joined(parts, np.repeat(np.arange(len(parts)), counts), rows), np.arange(len(rows)))
