"""The data sets of torchvision, in its own directories, with both of their splits and their images unread."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nml_kit.data.folders import read_class_folders
from nml_kit.data.images import LazyImages, Stamp, image_files, stamp_files
from nml_kit.data.task import Task, make_task
from nml_kit.errors import DataFileError, MissingDependencyError

Uses = Mapping[str, str]  # what each of a set's own splits is for
TRAIN_TEST: Uses = {"train": "train", "test": "test"}
TRAIN_VAL_TEST: Uses = {"train": "train", "val": "train", "test": "test"}
TRAINVAL_TEST: Uses = {"trainval": "train", "test": "test"}


def torchvision_files(name: str, root: Path, uses: Uses, *, download: bool = False) -> Task:
    """A set whose images are files, by the name of its class: Flowers102, Food101, StanfordCars, FGVCAircraft, DTD.

    Ids are paths below `root`. Raises DataFileError if torchvision does not find its files, or its download fails.
    """
    # The loader that it is given returns the path: all that an item is here.
    sets = {split: _built(name, root, download, split=split, loader=os.fspath) for split in uses}
    items = {split: [one[row] for row in range(len(one))] for split, one in sets.items()}
    files = [Path(file) for pairs in items.values() for file, _ in pairs]
    return _file_task(name, root, files, [int(label) for pairs in items.values() for _, label in pairs],
                      next(iter(sets.values())).classes, np.repeat(list(uses.values()), list(map(len, items.values())))
                      )  # fmt: skip


def torchvision_pets(root: Path, *, download: bool = False) -> Task:
    """OxfordIIITPet, whose class takes no loader: its lists are read here ("Abyssinian_100 1 1 1": label from 1)."""
    sets = {split: _built("OxfordIIITPet", root, download, split=split) for split in TRAINVAL_TEST}
    folder = root / "oxford-iiit-pet"
    lines = {split: (folder / "annotations" / f"{split}.txt").read_text().split("\n") for split in sets}
    rows = {split: [line.split() for line in found if line.strip()] for split, found in lines.items()}
    files = [folder / "images" / f"{row[0]}.jpg" for found in rows.values() for row in found]
    labels = [int(row[1]) - 1 for found in rows.values() for row in found]
    uses = np.repeat(list(TRAINVAL_TEST.values()), list(map(len, rows.values())))
    return _file_task("OxfordIIITPet", root, files, labels, sets["trainval"].classes, uses)


def torchvision_folders(
    name: str, root: Path, folder: str, *, download: bool = False, skip: Sequence[str] = ()
) -> Task:
    """A set in class folders below `root / folder`: Caltech101, EuroSAT, RenderedSST2 (see `read_class_folders`)."""
    _built(name, root, download)
    return read_class_folders(root / folder, name=name, skip=skip)


def torchvision_cifar(name: str, root: Path, *, download: bool = False) -> Task:
    """CIFAR10 or CIFAR100, in memory (180 MB)."""
    sets = [_built(name, root, download, train=train) for train in (True, False)]
    labels = np.concatenate([one.targets for one in sets]).astype(np.int64)
    return _pixel_task(name, sets[0].classes, [len(one.data) for one in sets], labels,
                       np.concatenate([one.data for one in sets]))  # fmt: skip


def torchvision_svhn(root: Path, *, download: bool = False) -> Task:
    """SVHN with its train and test part, without the extra one, in memory (300 MB)."""
    sets = [_built("SVHN", root, download, split=split) for split in TRAIN_TEST]
    pixels = np.concatenate([one.data for one in sets]).transpose(0, 2, 3, 1)
    labels = np.concatenate([one.labels for one in sets])
    return _pixel_task("SVHN", [str(digit) for digit in range(10)], [len(one.data) for one in sets], labels,
                       np.ascontiguousarray(pixels))  # fmt: skip


@dataclass(frozen=True, eq=False)
class _H5Images:
    """Pixels in the data set "x" of HDF5 files: image i is row `row_of[i]` of `paths[path_of[i]]`."""

    paths: Sequence[str]
    path_of: NDArray[np.int64]
    row_of: NDArray[np.int64]

    def read(self, number: int) -> NDArray[np.uint8]:
        import h5py

        try:
            with h5py.File(self.paths[self.path_of[number]]) as file:
                return file["x"][self.row_of[number]]
        except (OSError, KeyError, ValueError) as error:
            raise DataFileError(f"{self.place(number)}: expected an image, got {error}; restore the file.") from error

    def size(self, number: int) -> int:
        return self.read(number).nbytes

    def stamp(self, numbers: NDArray[np.int64]) -> Stamp | None:
        return stamp_files(self.paths, self.path_of[numbers], self.row_of[numbers])

    def place(self, number: int) -> str:
        return f"{self.paths[self.path_of[number]]}, row {self.row_of[number]}"


def torchvision_pcam(root: Path, *, download: bool = False) -> Task:
    """PCAM, whose HDF5 files stay on disk; train and val are for training.

    Raises MissingDependencyError without h5py.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingDependencyError("PCAM is in HDF5 files, which need h5py: pip install h5py.") from error
    sets = {split: _built("PCAM", root, download, split=split) for split in TRAIN_VAL_TEST}
    parts = {"train": "train", "val": "valid", "test": "test"}  # as its files are called
    stems = [str((root / "pcam" / f"camelyonpatch_level_2_split_{parts[split]}").absolute()) for split in sets]
    labels = []
    for stem in stems:
        with h5py.File(f"{stem}_y.h5") as file:
            labels.append(file["y"][:].reshape(-1).astype(np.int64))
    counts = list(map(len, labels))
    source = _H5Images([f"{stem}_x.h5" for stem in stems], np.repeat(np.arange(len(stems)), counts),
                       np.concatenate([np.arange(count) for count in counts]))  # fmt: skip
    return make_task(
        "PCAM",
        ids=np.array([f"{split}/{row:06d}" for split, count in zip(sets, counts, strict=True) for row in range(count)]),
        labels=np.concatenate(labels),
        class_names=("normal", "tumour"),
        splits=np.repeat(list(TRAIN_VAL_TEST.values()), counts),
        image_data=LazyImages(source, np.arange(sum(counts))),
    )


def _built(name: str, root: Path, download: bool, **options: Any) -> Any:
    """An object of a torchvision class; it checks the files, or downloads them."""
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{name} is read by torchvision: pip install 'nml_kit[models]'.") from error
    try:
        return getattr(datasets, name)(root, download=download, **options)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise DataFileError(
            f"Expected the files of {name} in {root}, as torchvision lays them out, got {error}; give its directory "
            "(NML_DATASETS, or root=…) or load it with download=True."
        ) from error


def _file_task(
    name: str, root: Path, files: list[Path], labels: list[int], classes: Sequence[str], splits: NDArray[np.str_]
) -> Task:
    return make_task(
        name,
        ids=np.array([file.relative_to(root).as_posix() for file in files]),
        labels=np.array(labels, dtype=np.int64),
        class_names=classes,
        splits=splits,
        image_data=image_files(files),
    )


def _pixel_task(
    name: str, classes: Sequence[str], counts: list[int], labels: NDArray[np.int64], pixels: NDArray[np.uint8]
) -> Task:
    splits = np.repeat(["train", "test"], counts)
    ids = np.array([f"{split}/{row:06d}" for split, count in zip(("train", "test"), counts, strict=True)
                    for row in range(count)])  # fmt: skip
    return make_task(name, ids=ids, labels=labels, class_names=classes, splits=splits, image_data=pixels)
