"""Images in folders: one folder a class (ImageFolder, ImageNet), or split files that list them (DomainNet)."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nml_kit.data.images import image_files
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError
from nml_kit.store import stays_inside

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TRAIN, _VALIDATION, _TEST = {"train", "training"}, {"val", "valid", "validation"}, {"test", "testing"}


def official_splits(names: Sequence[str]) -> dict[str, str]:
    """What each of a set's own splits is for: "train" or "test"; names that are none are left out.

    With a test split, a validation split is more to train on (heads carve their own part from it); without, it is the
    test split.

    >>> official_splits(["train", "val"]), official_splits(["train", "val", "test"])["val"]
    ({'train': 'train', 'val': 'test'}, 'train')
    """
    is_complete = _TEST & set(names) and _TRAIN & set(names)
    for_training = _TRAIN | (_VALIDATION if is_complete else set())
    roles = dict.fromkeys(_TEST | _VALIDATION, "test") | dict.fromkeys(for_training, "train")
    return {name: roles[name] for name in names if name in roles}


def read_class_folders(root: str | Path, *, name: str | None = None, skip: Sequence[str] = ()) -> Task:
    """A Task from folders of images, one a class: `root/CLASS/…`, or `root/train/CLASS/…`, `root/val/CLASS/…`, ….

    Classes are the folders' names, sorted, without those to `skip`; ids are the paths below `root`; splits are those of
    `official_splits`. A test folder without class folders, as ImageNet has, is left out if val has them.
    Raises DataFileError if a folder is missing or holds no images.
    """
    root = Path(root)
    split_folders = list(official_splits([path.name for path in _subfolders(root)]))
    splits = official_splits([split for split in split_folders if _subfolders(root / split)])
    flat = [split for split in split_folders if split not in splits]
    if flat and splits and "test" not in splits.values():  # as ImageNet's validation images come
        _class_folders(root / flat[-1], skip)
    folders = {split: _class_folders(root / split, skip) for split in splits} or {"": _class_folders(root, skip)}
    classes = sorted({name for names in folders.values() for name in names})
    rows = []
    for split, class_name in ((split, name) for split, names in folders.items() for name in names):
        files = list(_images_below(root / split / class_name, root))
        if not files:
            raise DataFileError(
                f"{root / split / class_name}: expected images ({', '.join(IMAGE_SUFFIXES)}) of class "
                f"{class_name!r}, got none; delete the folder or restore its files."
            )
        rows += [(file, classes.index(class_name), splits.get(split)) for file in files]
    ids, labels, roles = zip(*rows, strict=True)
    more = {"splits": np.array(roles)} if splits else {}
    images = image_files([root / file for file in ids])
    return Task(name or root.name, np.array(ids), np.array(labels, np.int64), tuple(classes), image_data=images, **more)


def read_imagenet_variant(root: Path, folder: Path, name: str) -> Task:
    """A test set in class folders with ImageNet's labels: named by WordNet ids, or numbered 0 to 999 (V2).

    All samples are "test"; `class_names` are those of ImageNet, also where the set has some of the classes only (R, A;
    published accuracies on those choose among their 200 classes alone).
    Raises DataFileError for a folder that is no class of ImageNet.
    """
    classes, numbered = _imagenet_classes(root), name == "imagenet-v2"
    task = read_class_folders(folder, name=name)
    known = [str(number) for number in range(len(classes))] if numbered else classes
    if unknown := [class_name for class_name in task.class_names if class_name not in known]:
        kind = f"numbers 0 to {len(classes) - 1}" if numbered else "WordNet ids of ImageNet's classes"
        raise DataFileError(f"{folder}: expected folders named by {kind}, got {unknown[0]!r}; check where it is from.")
    labels = np.array([known.index(class_name) for class_name in task.class_names], dtype=np.int64)[task.labels]
    splits = np.full(len(task), "test")
    return replace(task, labels=labels, class_names=tuple(classes), captions=np.array(classes)[labels], splits=splits)


def read_listed_domains(root: str | Path, domains: Sequence[str] | None = None) -> Task:
    """A Task from DomainNet's split files, `DOMAIN_train.txt` and `DOMAIN_test.txt`: lines "real/airplane/x.jpg 0".

    `domains` None: all that `root` has files of. Paths are below `root` and are the ids; the classes are the second
    folders of the paths. Raises DataFileError if a file is missing or a line is no such line.
    """
    root = Path(root)
    if domains is None:
        domains = sorted({file.name.removesuffix(".txt").rpartition("_")[0] for file in split_files(root)})
    names: dict[int, str] = {}
    rows = [
        (file, label, domain, split)
        for domain in domains
        for split in ("train", "test")
        for file, label in _listed(root / f"{domain}_{split}.txt", names)
    ]
    if not rows:
        raise DataFileError(f"{root}: expected split files such as real_train.txt that list images, got none.")
    files, labels, domain_of, split_of = zip(*rows, strict=True)
    return Task(
        root.name,
        np.array(files),
        np.array(labels, dtype=np.int64),
        tuple(names.get(number, f"class {number}") for number in range(max(names) + 1)),
        domains=np.array(domain_of),
        splits=np.array(split_of),
        image_data=image_files([root / file for file in files]),
    )


def split_files(root: Path) -> list[Path]:
    """DomainNet's split files in a folder."""
    return [*root.glob("*_train.txt"), *root.glob("*_test.txt")]


def _listed(path: Path, names: dict[int, str]) -> Iterator[tuple[str, int]]:
    """The files and labels of a split file; `names` learns, and keeps, the name of each label."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"Expected the split file {path}, got {error}; download it to there, beside the folders of the domains."
        ) from error
    for number, line in enumerate(filter(str.strip, lines), 1):
        file, _, label = line.strip().rpartition(" ")
        parts = file.split("/")
        if not (label.isdecimal() and len(label) < 7 and len(parts) >= 3 and stays_inside(file)):
            raise DataFileError(f"{path}, line {number}: expected a line as 'real/airplane/x.jpg 0', got {line!r}.")
        if names.setdefault(int(label), parts[1]) != parts[1]:
            raise DataFileError(
                f"{path}, line {number}: expected label {label} for {names[int(label)]!r} as before, got {parts[1]!r}; "
                "take all split files from one source."
            )
        yield file, int(label)


def _imagenet_classes(root: Path) -> list[str]:
    """The WordNet ids of ImageNet's classes in the order of its labels, which is the sorted one."""
    for folder in (root / "imagenet" / "val", root / "imagenet" / "train"):
        if folder.is_dir() and (names := [path.name for path in _subfolders(folder)]):
            return names
    listed = root / "imagenet" / "wnids.txt"
    try:
        return sorted(listed.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"Expected ImageNet's class folders in {root / 'imagenet' / 'val'}, or its WordNet ids in {listed}, to "
            f"know the labels of its variants, got {error}; write the ids there, one a line."
        ) from error


def _subfolders(root: Path) -> list[Path]:
    try:
        folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(folders, key=lambda path: path.name)
    except OSError as error:
        raise DataFileError(f"Expected a folder at {root}, got {error}; check the path.") from error


def _class_folders(root: Path, skip: Sequence[str]) -> list[str]:
    names = [path.name for path in _subfolders(root) if path.name not in skip]
    if not names:
        raise DataFileError(
            f"{root}: expected one folder of images for each class, got none; sort the images into folders, or check "
            "the path (shards are given by a pattern as 'in-{000..005}.tar')."
        )
    return names


def _images_below(folder: Path, root: Path) -> Iterator[str]:
    """Paths of the images at any depth of `folder`, from `root`, with / on every system, in sorted order."""
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        below = Path(directory).relative_to(root).as_posix()
        for file in sorted(files):
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                yield f"{below}/{file}"
