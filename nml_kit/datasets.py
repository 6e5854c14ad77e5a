"""Data sets as `Task` values, by name or by path."""

import os
from pathlib import Path

from nml_kit.data_folders import has_listed_domains, read_class_folders, read_listed_domains
from nml_kit.data_shards import read_shards
from nml_kit.data_tables import TABLE_SUFFIXES, read_parquet_task, read_table_task
from nml_kit.errors import unknown_name
from nml_kit.tasks import Task

SHIPPED_TASKS = (
    "icons-pretrain",
    "icons",
    "icons-rare",
    "icons-badges",
    "emoji",
    "fashion",
    "digits",
    "emoji-text",
)


def data_dir() -> Path:
    """Directory of the shipped data: $NML_DATA, else inside the installed package, else in the checkout."""
    if os.environ.get("NML_DATA"):
        return Path(os.environ["NML_DATA"])
    package = Path(__file__).parent
    packaged = package / "_shipped" / "data"
    return packaged if packaged.is_dir() else package.parent / "data"


def load_task(source: str | Path, *, root: str | Path | None = None) -> Task:
    """Load a task by its name, or any data set by its path.

    Paths: a .csv, .tsv or .parquet table with the columns `label`, and `image` or `text` (`read_table_task`); a folder
    of images, one folder a class, with or without `train` and `val` or `test` above them (`read_class_folders`); a
    folder with split files as DomainNet has (`read_listed_domains`); WebDataset shards by a brace pattern as
    "in-{000..005}.tar" (`read_shards`). Files of images are read when their pixels are asked for.
    `root` replaces the directory of the shipped data.
    Raises UnknownNameError for an unregistered name, DataFileError if a file is missing, cut short or has other
    columns than it should.

    >>> digits = load_task("digits")
    >>> digits.images.shape, digits.num_classes
    ((1797, 32, 32, 3), 10)
    """
    name, path = str(source), Path(source)
    if name in SHIPPED_TASKS:
        return read_parquet_task(Path(root or data_dir()) / f"{name}.parquet")
    if path.suffix in TABLE_SUFFIXES:
        return read_table_task(path)
    if path.suffix == ".tar":
        return read_shards(path)
    if path.is_dir():
        return read_listed_domains(path) if has_listed_domains(path) else read_class_folders(path)
    raise unknown_name("data set", name, SHIPPED_TASKS)
