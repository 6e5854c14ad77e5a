"""Data sets as `Task` values, by name or by path."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nml_kit.data.catalogue import datasets_dir, is_known, is_present, known_sets, read_known
from nml_kit.data.folders import read_class_folders, read_listed_domains, split_files
from nml_kit.data.images import JoinedImages, LazyImages
from nml_kit.data.shards import read_shards
from nml_kit.data.tables import TABLE_SUFFIXES, is_saved_to_disk, read_hub, read_table_task
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError, InvalidInputError, unknown_name

SHIPPED_TASKS = ("icons-pretrain", "icons", "icons-rare", "icons-badges", "emoji", "fashion", "digits", "emoji-text")


def data_dir() -> Path:
    """Directory of the shipped data: $NML_DATA, else inside the installed package, else in the checkout."""
    if os.environ.get("NML_DATA"):
        return Path(os.environ["NML_DATA"]).expanduser().absolute()
    package = Path(__file__).parents[1]
    packaged = package / "_shipped" / "data"
    return packaged if packaged.is_dir() else package.parent / "data"


def load_task(source: str | Path, *, root: str | Path | None = None, download: bool = False) -> Task:
    """Load a task by its name, or any data set by its path.

    Names: a shipped task; a data set of the study as "cifar10", "imagenet-r", "domainnet:real,sketch" or "glue:sst2"
    (`nml datasets` lists them), from below `root` (default: $NML_DATASETS), where `download` puts what torchvision can
    fetch; "hf:owner/name" or "hf:owner/name/config", a data set of the Hugging Face hub.
    Paths: a .csv, .tsv or .parquet table with the columns `label`, and `image` or `text`; images in one folder a class,
    with or without `train` and `val` or `test`, or domains that share the classes, above them; a folder with split
    files as DomainNet has; WebDataset shards by a brace pattern as "in-{000..005}.tar"; a directory of `save_to_disk`
    of Hugging Face `datasets`, or "hf:" before any directory that it reads.
    Several, joined by "+" as "imagenet+imagenet-r", are one task with a domain each (`join_tasks`).
    Files of images are read when their pixels are asked for. For a shipped task `root` replaces the directory of the
    shipped data.
    Raises UnknownNameError for an unregistered name, InvalidInputError for another kind of file, DataFileError if a
    file is missing, cut short or has other columns than it should.

    >>> digits = load_task("digits")
    >>> digits.images.shape, digits.num_classes
    ((1797, 32, 32, 3), 10)
    """
    name, path = str(source), Path(source)
    if name in SHIPPED_TASKS:
        return read_table_task(Path(root or data_dir()) / f"{name}.parquet")
    if is_known(name):
        return read_known(name, root, download=download)
    if name.startswith("hf:"):
        return _hub_task(name.removeprefix("hf:"))
    if not path.exists() and "+" in name:
        return join_tasks([load_task(part, root=root, download=download) for part in name.split("+")])
    if path.suffix in TABLE_SUFFIXES:
        return read_table_task(path)
    if path.suffix == ".tar":
        return read_shards(name)
    if path.is_dir():
        if is_saved_to_disk(path):
            return read_hub(path)
        return read_listed_domains(path) if split_files(path) else read_class_folders(path)
    if path.is_file():
        raise InvalidInputError(
            f"Expected a file that ends in {', '.join(TABLE_SUFFIXES)} or .tar, or a folder, got {path}."
        )
    if len(path.parts) > 1:
        raise DataFileError(f"Expected a data set at {path.absolute()}, but nothing is there; check the path.")
    raise unknown_name("data set", name, [*SHIPPED_TASKS, *known_sets()])


def dataset_rows(root: str | Path | None = None) -> list[dict[str, Any]]:
    """What each name stands for: use, classes, splits, licence, citation, where it lies, and whether it is there."""
    below, rows = Path(root) if root is not None else datasets_dir(), []
    for name in SHIPPED_TASKS:
        path = data_dir() / f"{name}.parquet"
        about: dict[str, Any] = {"splits": "train; test", "licence": "see data/LICENSES", "citation": "data/README.md"}
        classes = read_table_task(path).num_classes if path.exists() else None
        about = {"name": name, "use": "shipped", "classes": classes, **about}
        rows.append(about | {"where": str(path), "present": path.exists()})
    for known in known_sets().values():
        about = {column: getattr(known, column) for column in about if column not in ("where", "present")}
        hub = f" or hf:{known.hub.replace(':', '/')}" if known.hub else ""
        rows.append(about | {"where": f"{below / known.folder}{hub}", "present": is_present(known, below)})
    return rows


def _hub_task(source: str) -> Task:
    """A local directory, or owner/name and perhaps a config."""
    if Path(source).is_dir():
        return read_hub(source)
    *owner_and_name, config = source.split("/") if source.count("/") == 2 else (source, "")
    return read_hub("/".join(owner_and_name), config=config or None, name=source.replace("/", ":"))


def join_tasks(tasks: Sequence[Task], *, name: str = "") -> Task:
    """One task with the samples of all `tasks`, which have the same classes; a sample's domain is its task's name.

    So ImageNet and its variants, or a set and its shifted counterparts, are evaluated as domains of one task. Ids get
    the name before them. Raises InvalidInputError if names repeat, classes differ, or only some are images.

    >>> from nml_kit.data import task_from_arrays
    >>> tasks = [task_from_arrays(["a", "b"], [0, 1], name=name) for name in ("here", "there")]
    >>> join_tasks(tasks).ids.tolist()[::3]
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
    return Task(
        name or "+".join(names),
        np.array([f"{task.name}/{sample_id}" for task in tasks for sample_id in task.ids.tolist()]),
        class_names=tasks[0].class_names,
        domains=np.repeat(names, list(map(len, tasks))),
        image_data=None if kinds == {True} else _joined_images([task.image_data for task in tasks]),
        **{key: np.concatenate([getattr(task, key) for task in tasks]) for key in ("labels", "captions", "splits")},
    )


def _joined_images(parts: Sequence[Any]) -> np.ndarray | LazyImages:
    held = not any(isinstance(part, LazyImages) for part in parts)
    if held and len({(part.dtype, part.shape[1:]) for part in parts}) == 1:
        return np.concatenate(parts)
    rows = np.concatenate([np.arange(len(part)) for part in parts])
    part_of = np.repeat(np.arange(len(parts)), list(map(len, parts)))
    return LazyImages(JoinedImages(parts, part_of, rows), np.arange(len(rows)))
