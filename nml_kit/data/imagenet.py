"""ImageNet-1K as class folders, and the test sets that share its 1000 classes: V2, R, A, Sketch."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from nml_kit.data.folders import read_class_folders
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError


def imagenet_classes(root: Path) -> list[str]:
    """The WordNet ids of ImageNet's classes in the order of its labels, which is the sorted one.

    Read from the folders in `root/imagenet/val` or `train`, or else from `root/imagenet/wnids.txt`, one a line.
    Raises DataFileError if there is neither.
    """
    for folder in (root / "imagenet" / "val", root / "imagenet" / "train"):
        if folder.is_dir() and (names := sorted(path.name for path in folder.iterdir() if path.is_dir())):
            return names
    listed = root / "imagenet" / "wnids.txt"
    try:
        return sorted(listed.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"Expected ImageNet's class folders in {root / 'imagenet' / 'val'}, or its WordNet ids in {listed}, to "
            f"know the labels of its variants, got {error}; write the ids there, one a line."
        ) from error


def read_imagenet_variant(root: Path, folder: Path, name: str, *, numbered: bool = False) -> Task:
    """A test set in class folders with ImageNet's labels: named by WordNet ids, or `numbered` 0 to 999 (V2).

    All samples are "test"; `class_names` are those of ImageNet, also where the set has some of the classes only (R, A;
    published accuracies on those choose among their 200 classes alone).
    Raises DataFileError for a folder that is no class of ImageNet.
    """
    classes = imagenet_classes(root)
    task = read_class_folders(folder, name=name)
    known = {str(number): number for number in range(len(classes))} if numbered else {
        wnid: number for number, wnid in enumerate(classes)
    }  # fmt: skip
    if unknown := [found for found in task.class_names if found not in known]:
        kind = f"numbers 0 to {len(classes) - 1}" if numbered else "WordNet ids of ImageNet's classes"
        raise DataFileError(f"{folder}: expected folders named by {kind}, got {unknown[0]!r}; check where it is from.")
    label_of = np.array([known[found] for found in task.class_names], dtype=np.int64)
    captions = np.array(classes)[label_of[task.labels]]
    return replace(task, labels=label_of[task.labels], class_names=tuple(classes), captions=captions,
                   splits=np.full(len(task), "test"))  # fmt: skip
