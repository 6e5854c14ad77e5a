"""Images in folders: one folder a class (ImageFolder, ImageNet), or split files that list them (DomainNet)."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nml_kit.data.images import image_files
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError
from nml_kit.store import stays_inside

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SYSTEM_FOLDERS = ("__MACOSX", "__pycache__", "@eaDir")
_SPLIT_NAMES = re.compile(
    r"(?:(?P<train>train(?:ing|val)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))(?:[ _-]?(?:set|data))?",
    re.IGNORECASE,
)
_LAYOUTS = "CLASS/…, SPLIT/CLASS/…, DOMAIN/CLASS/…, SPLIT/DOMAIN/CLASS/… or DOMAIN/SPLIT/CLASS/…"
_log = logging.getLogger(__name__)


class ClassFolder(NamedTuple):
    """A folder of images of one class, and the names of its split and domain (empty: none)."""

    split: str
    domain: str
    path: Path


def official_splits(names: Iterable[str]) -> dict[str, str]:
    """What each of a set's own splits is for: "train" or "test"; names that are none are left out.

    Case does not matter, and "training_set" is "train". With a test split, a validation split is more to train on
    (heads carve their own part from it); without, it is the test split.

    >>> official_splits(["Train", "val"]), official_splits(["train", "val", "test_set"])["val"]
    ({'Train': 'train', 'val': 'test'}, 'train')
    """
    kinds = {name: _split_kind(name) for name in names}
    for_training = {"train", "val"} if {"train", "test"} <= set(kinds.values()) else {"train"}
    return {name: "train" if kind in for_training else "test" for name, kind in kinds.items() if kind}


def read_class_folders(root: str | Path, *, name: str | None = None, skip: Sequence[str] = ()) -> Task:
    """A Task from folders of images, one a class: `root/CLASS/…`, with splits or domains or both above the classes.

    Classes are the folders' names, sorted, without those to `skip` and hidden ones; splits are those of
    `official_splits`. Folders that share their subfolders are domains. A folder that is alone is entered; ids are the
    paths below. A test folder without class folders, as ImageNet has, is left out if val has them.
    What was read is logged, with a warning for what was left out though one sees it.
    Raises DataFileError if a folder is missing or holds no images, or if folders can be read in several ways.
    """
    folders, name = sorted(_class_folders(Path(root), skip)), name or Path(root).name
    root, *_ = _entered(Path(root), skip)
    roles = official_splits(folder.split for folder in folders)
    classes = sorted({folder.path.name for folder in folders})
    _require_shared_classes(root, folders, roles)
    rows = []
    for folder in folders:
        files = list(_images_below(folder.path, root))
        if not files:
            raise DataFileError(
                f"{folder.path}: expected images ({', '.join(IMAGE_SUFFIXES)}) of class {folder.path.name!r}, got "
                "none; put them there, or move the folder out."
            )
        rows += [(file, classes.index(folder.path.name), folder.domain, roles.get(folder.split)) for file in files]
    ids, labels, domains, splits = zip(*rows, strict=True)
    task = Task(
        name,
        np.array(ids),
        np.array(labels, np.int64),
        tuple(classes),
        domains=np.array(domains) if any(domains) else None,
        splits=np.array(splits) if roles else None,
        image_data=image_files([root / file for file in ids]),
    )
    rule = ", ".join(f"{split} is {role}" for split, role in roles.items()) or "a quarter of each class is test"
    counts = [(task.splits == "train").sum(), (task.splits == "test").sum(), len(classes), len(set(domains))]
    _log.info("Read %s train and %s test images of %s classes and %s domains below %s; %s.", *counts, root, rule)
    return task


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
    """DomainNet's split files in a folder, beside the folders of their domains."""
    files = [*root.glob("*_train.txt"), *root.glob("*_test.txt")]
    return [file for file in files if file.with_name(file.stem.rpartition("_")[0]).is_dir()]


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
        if folder.is_dir() and (names := _listing(folder)[0]):
            if strange := [name for name in names if not re.fullmatch(r"n\d{8}", name)]:
                raise DataFileError(f"{folder}: expected folders named by WordNet ids, got {strange[0]!r}; move it.")
            return names
    listed = root / "imagenet" / "wnids.txt"
    try:
        return sorted(listed.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise DataFileError(
            f"Expected ImageNet's class folders in {root / 'imagenet' / 'val'}, or its WordNet ids in {listed}, to "
            f"know the labels of its variants, got {error}; write the ids there, one a line."
        ) from error


def _split_kind(name: str) -> str | None:
    match = _SPLIT_NAMES.fullmatch(name)
    return match and match.lastgroup


def _class_folders(root: Path, skip: Sequence[str], split: str = "", domain: str = "") -> Iterator[ClassFolder]:
    """The class folders at, or below, the level of `root`, which is of this split and domain."""
    outer, (root, folders, images) = root, _entered(root, skip)
    for path in {*outer.iterdir(), *root.iterdir()}:
        if not _is_visible(path.name) and path.is_dir():
            _log.info(f"Left out {path}: hidden.")
    if not folders:
        raise DataFileError(
            f"{root}: expected one folder of images for each class, got none; sort the images into folders, or check "
            "the path (shards are given by a pattern as 'in-{000..005}.tar')."
        )
    if images:
        _log.warning(f"Left out {len(images):,} images in {root}, such as {images[0]}: they are in no class folder.")
    if not split and (splits := _split_folders(root, folders, skip)):
        for name in splits:
            yield from _class_folders(root / name, skip, name, domain)
    elif not domain and _are_domains(root, folders, skip):
        for name in folders:
            yield from _class_folders(root / name, skip, split, name)
    else:
        yield from (ClassFolder(split, domain, root / name) for name in folders)


def _split_folders(root: Path, folders: Sequence[str], skip: Sequence[str]) -> list[str]:
    """The folders that are splits to read, none if there are none."""
    splits = [name for name in folders if _split_kind(name)]
    with_classes = [name for name in splits if _listing(root / name, skip)[0]]
    others = [name for name in folders if name not in splits]
    classes = [name for name in others if any(_images_below(root / name, root))]
    if len(splits) == 1 and classes and not any(_listing(root / name, skip)[0] for name in folders):
        _log.warning(f"Read {splits[0]} in {root} as a class, as the folders beside it; rename it if it is a split.")
        return []
    if splits and classes:
        raise DataFileError(
            f"{root}: expected splits or classes, got {', '.join(splits)} beside {', '.join(classes[:3])}; lay them "
            f"out as {_LAYOUTS}."
        )
    if splits and others:
        _log.warning(f"Left out {', '.join(others)} in {root}: without images.")
    flat_tests = [name for name in splits if name not in with_classes and _split_kind(name) == "test"]
    unlabelled = flat_tests if "val" in map(_split_kind, with_classes) else []
    if unlabelled:
        _log.warning(f"Left out {', '.join(unlabelled)} in {root}: without class folders, which val has.")
    return [name for name in splits if name not in unlabelled]


def _are_domains(root: Path, folders: Sequence[str], skip: Sequence[str]) -> bool:
    """Whether folders are domains, which share their subfolders, rather than classes, which hold images."""
    inside = {}
    for name in folders:
        _, names, images = _entered(root / name, skip)
        if not images and (len(names) > 1 or official_splits(names)):
            inside[name] = set(names)
    if not inside:
        return False
    everything = set.union(*inside.values())
    is_shared = all(2 * len(names) > len(everything) for names in inside.values())
    if len(inside) < len(folders) or not (is_shared or all(map(official_splits, inside.values()))):
        first, *_ = inside
        beside = next(name for name in [*(set(folders) - set(inside)), *reversed(inside)] if name != first)
        raise DataFileError(
            f"{root}: expected folders that all hold the images of a class, or that all share their class folders, "
            f"got {first} with {', '.join(sorted(inside[first])[:3])} beside {beside}; lay them out as {_LAYOUTS}."
        )
    return True


def _require_shared_classes(root: Path, folders: Sequence[ClassFolder], roles: dict[str, str]) -> None:
    """Raise DataFileError if train and test have no class in common, warn if one has others."""
    train, test = ({f.path.name for f in folders if roles.get(f.split) == use} for use in ("train", "test"))
    if train and test and (differing := sorted(train ^ test)):
        if not train & test:
            raise DataFileError(
                f"{root}: expected the same class folders for train and test, got {min(train)}, … and {min(test)}, …; "
                f"lay them out as {_LAYOUTS}."
            )
        _log.warning(f"Only in train or only in test of {root}: {', '.join(differing[:5])} ({len(differing)} classes).")


def _entered(root: Path, skip: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """`root`, or the folder in it that holds all the others, such as an archive leaves, and its `_listing`."""
    folders, images = _listing(root, skip)
    if len(folders) == 1 and not images and not _split_kind(folders[0]):
        deeper = _entered(root / folders[0], skip)
        if deeper[1] and not deeper[2]:
            return deeper
    return root, folders, images


def _listing(root: Path, skip: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The names of the folders and of the images in a folder, sorted, without hidden ones."""

    def explain(error: OSError) -> None:
        raise DataFileError(f"Expected a folder at {root}, got {error}; check the path.") from error

    _, folders, files = next(os.walk(root, onerror=explain))
    return sorted({*filter(_is_visible, folders)} - {*skip}), sorted(filter(_is_image, files))


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in _SYSTEM_FOLDERS


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _images_below(folder: Path, root: Path) -> Iterator[str]:
    """Paths of the images at any depth of `folder`, from `root`, with / on every system, in sorted order."""
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(filter(_is_visible, folders))
        below = Path(directory).relative_to(root).as_posix()
        yield from (f"{below}/{file}" for file in sorted(filter(_is_image, files)))
