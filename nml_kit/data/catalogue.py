"""The data sets of the study by name: where each lies below one directory, its splits, licence, source and reader."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from nml_kit.data.folders import read_class_folders, read_imagenet_variant, read_listed_domains
from nml_kit.data.images import ImageSource, LazyImages, Stamp, image_files, stamp_files
from nml_kit.data.tables import read_hub
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError, MissingDependencyError, unknown_name

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


class KnownSet(NamedTuple):
    """A data set by name, a row of catalogue.csv: its use, number of classes, and folder in the directory of data sets.

    `splits` says what is for training and what for testing, `parts` that of each of its own splits. `source` is its
    class in torchvision, or "owner/name:config" of the Hugging Face hub, which is read if there is no `folder`.
    """

    name: str
    use: str
    classes: int
    folder: str
    splits: str
    licence: str
    citation: str
    reader: str
    source: str
    parts: dict[str, str]
    inputs: list[str]
    class_names: list[str]

    @property
    def hub(self) -> str:
        """Its name on the hub, or ""."""
        return self.source if "/" in self.source else ""

    @property
    def downloads(self) -> bool:
        """Whether it can be fetched; the page of Stanford Cars is gone."""
        return self.source not in ("", "StanfordCars")


@dataclass(frozen=True, eq=False)
class H5Images(ImageSource):
    """Pixels in the data set "x" of HDF5 files: image i is row `row_of[i]` of `paths[path_of[i]]`."""

    paths: list[str]
    path_of: Int64[np.ndarray, " n"]
    row_of: Int64[np.ndarray, " n"]

    def read(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        import h5py

        try:
            with h5py.File(self.paths[self.path_of[number]]) as file:
                return file["x"][self.row_of[number]]
        except (OSError, KeyError, ValueError) as error:
            raise DataFileError(f"{self.place(number)}: expected an image, got {error}; restore the file.") from error

    def place(self, number: int) -> str:
        return f"{self.paths[self.path_of[number]]}, row {self.row_of[number]}"

    def stamp(self, numbers: Int64[np.ndarray, " n"]) -> Stamp | None:
        return stamp_files(self.paths, self.path_of[numbers], self.row_of[numbers])


def _torchvision(known: KnownSet, root: Path, download: bool, **options: Any) -> Any:
    """An object of a torchvision class; it checks the files, or downloads them."""
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        message = f"{known.source} is read by torchvision: pip install 'nml_kit[models]'."
        raise MissingDependencyError(message) from error
    try:
        return getattr(datasets, known.source)(root, download=download, **options)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise DataFileError(
            f"Expected the files of {known.source} in {root}, as torchvision lays them out, got {error}; give its "
            "directory (NML_DATASETS, or root=…) or load it with download=True."
        ) from error


def _read_files(known: KnownSet, root: Path, download: bool) -> Task:
    """A set of torchvision whose images are files; ids are paths below `root`."""
    rows: list[tuple[str, int, str]] = []
    classes: list[list[str]] = []
    for split, use in known.parts.items():
        if known.source == "OxfordIIITPet":  # its class takes no loader
            data = _torchvision(known, root, download, split=split)
            items = list(zip(data._images, data._labels, strict=True))
        else:  # the loader returns the path, all that an item is here
            data = _torchvision(known, root, download, split=split, loader=os.fspath)
            items = [data[row] for row in range(len(data))]
        rows += [(file, label, use) for file, label in items]
        classes.append(data.classes)
    files, labels, roles = zip(*rows, strict=True)
    return Task(
        known.source,
        np.array([Path(file).relative_to(root).as_posix() for file in files]),
        np.array(labels, dtype=np.int64),
        tuple(classes[0]),
        splits=np.array(roles),
        image_data=image_files(files),
    )


def _read_folders(known: KnownSet, root: Path, download: bool) -> Task:
    """A set in class folders, which torchvision checks if it knows it."""
    if known.source:
        _torchvision(known, root, download)
    skip = ["BACKGROUND_Google"]  # of Caltech-101
    return read_class_folders(root / known.folder, name=known.source or None, skip=skip)


def _read_pixels(known: KnownSet, root: Path, download: bool) -> Task:
    """CIFAR or SVHN (without its extra part), in memory (180 or 300 MB)."""
    if known.source == "SVHN":
        parts = [_torchvision(known, root / "svhn", download, split=split) for split in known.parts]
        pixels = np.concatenate([part.data for part in parts]).transpose(0, 2, 3, 1)
        labels, classes = [part.labels for part in parts], [str(digit) for digit in range(10)]
    else:
        parts = [_torchvision(known, root, download, train=split == "train") for split in known.parts]
        pixels = np.concatenate([part.data for part in parts])
        labels, classes = [part.targets for part in parts], parts[0].classes
    return _numbered_task(known, labels, classes, np.ascontiguousarray(pixels))


def _read_pcam(known: KnownSet, root: Path, download: bool) -> Task:
    """PCAM, whose HDF5 files stay on disk."""
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise MissingDependencyError("PCAM is in HDF5 files, which need h5py: pip install h5py.") from error
    labels, paths = [], []
    for split in known.parts:
        _torchvision(known, root, download, split=split)
        file_name = f"camelyonpatch_level_2_split_{'valid' if split == 'val' else split}"
        stem = (root / known.folder / file_name).absolute()
        with h5py.File(f"{stem}_y.h5") as file:
            labels.append(file["y"][:].reshape(-1))
        paths.append(f"{stem}_x.h5")
    sizes = list(map(len, labels))
    rows = np.concatenate([np.arange(size) for size in sizes])
    images = LazyImages(H5Images(paths, np.repeat(np.arange(len(paths)), sizes), rows), np.arange(len(rows)))
    return _numbered_task(known, labels, ["normal", "tumour"], images)


def _numbered_task(known: KnownSet, labels: Sequence[Any], classes: Sequence[str], image_data: Any) -> Task:
    """A task with these labels in each split; ids are the samples' numbers in their splits."""
    sizes = list(map(len, labels))
    return Task(
        known.source,
        np.array([f"{split}/{row:06d}" for split, n in zip(known.parts, sizes, strict=True) for row in range(n)]),
        np.concatenate(labels).astype(np.int64),
        tuple(classes),
        splits=np.repeat(list(known.parts.values()), sizes),
        image_data=image_data,
    )


def _read_texts(known: KnownSet, root: Path, download: bool) -> Task:
    """A data set of the hub, or the same saved in its folder."""
    source, _, config = known.hub.partition(":")
    saved = (root / known.folder).is_dir()
    return read_hub(
        root / known.folder if saved else source,
        config=None if saved else config or None,
        name=known.name,
        inputs=known.inputs,
        class_names=known.class_names,
        splits=known.parts,
    )


_READERS: dict[str, Callable[[KnownSet, Path, bool], Task]] = {
    "files": _read_files,
    "folders": _read_folders,
    "pixels": _read_pixels,
    "pcam": _read_pcam,
    "variant": lambda known, root, _: read_imagenet_variant(root, root / known.folder, known.name),
    "domains": lambda known, root, _: read_listed_domains(root / known.folder, DOMAINS),
    "texts": _read_texts,
}


@cache
def known_sets() -> dict[str, KnownSet]:
    """All data sets that have names: image sets, GLUE, and what GLUE-X tests on as far as the hub has it ready."""
    with Path(__file__).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {}
    for row in rows:
        lists = {name: row[name].split() for name in ("parts", "inputs", "class_names")}
        parts = dict(pair.split(":") for pair in lists.pop("parts"))
        known[row["name"]] = KnownSet(**row | lists | {"classes": int(row["classes"]), "parts": parts})
    return known


def datasets_dir() -> Path:
    """Directory of the data sets that have names: $NML_DATASETS, else `datasets` in the present directory."""
    return Path(os.environ.get("NML_DATASETS") or "datasets").expanduser().absolute()


def is_known(name: str) -> bool:
    """Whether it names a data set: one of `known_sets`, or domains of DomainNet as "domainnet:real,sketch"."""
    return name in known_sets() or name.startswith("domainnet:")


def is_cached(source: str, config: str = "") -> bool:
    """Whether `datasets` has prepared this data set of the hub in its cache (HF_DATASETS_CACHE, HF_HOME)."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(os.environ.get("HF_HOME") or home) / "datasets")
    return (cache.expanduser() / source.replace("/", "___") / config).is_dir()


def is_present(known: KnownSet, root: Path) -> bool:
    """Whether a data set is below `root`, or in the cache of `datasets` for one of the hub."""
    return (root / known.folder).exists() or bool(known.hub and is_cached(*known.hub.split(":")))


def read_known(name: str, root: str | Path | None = None, *, download: bool = False) -> Task:
    """The data set of a name (see `is_known`), from below `root`, by default `datasets_dir()`.

    `download` lets torchvision fetch what is not there; sets of the hub are fetched in any case, once.
    Raises DataFileError if it is not there.
    """
    family, _, chosen = name.partition(":")
    known = known_sets().get(name) or known_sets()[family]
    root = Path(root) if root is not None else datasets_dir()
    if not (known.hub or is_present(known, root) or (download and known.downloads)):
        how = "load it with download=True" if known.downloads else f"fetch it from its authors ({known.citation})"
        raise DataFileError(
            f"Expected data set {name!r} in {(root / known.folder).absolute()}, but nothing is there; {how}, or say in "
            "NML_DATASETS, or by root=…, where it is."
        )
    if known.name == "domainnet" and chosen:
        domains = chosen.split(",")
        if unknown := [domain for domain in domains if domain not in DOMAINS]:
            raise unknown_name("domain", unknown[0], DOMAINS)
        return read_listed_domains(root / known.folder, domains)
    return _READERS[known.reader](known, root, download)
