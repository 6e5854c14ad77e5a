"""The data sets of the study by name: where each lies below one directory, its splits, licence and source."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nml_kit.data import torchvision as tv
from nml_kit.data.folders import read_class_folders, read_listed_domains
from nml_kit.data.hub import is_cached, read_hub
from nml_kit.data.imagenet import read_imagenet_variant
from nml_kit.data.task import Task
from nml_kit.errors import DataFileError, unknown_name

Use = Literal["ID", "OOD", "pre-training", "text ID", "text OOD"]
Reader = Callable[[Path, bool], Task]  # of the directory of data sets, and whether to download

_SEE = "see its page"
_GLUE = "Wang et al., GLUE, ICLR 2019"


@dataclass(frozen=True)
class KnownSet:
    """A data set by name: what it is for, its number of classes, and where it lies below the directory of data sets.

    `splits` says what is for training and what for testing. `hub` is its name on the Hugging Face hub, from where it is
    read, through the cache of `datasets`, if `folder` is not there.
    """

    name: str
    use: Use
    classes: int
    folder: str
    splits: str
    licence: str
    citation: str
    read: Reader
    downloads: bool = False
    hub: str = ""


def _files(name: str, uses: tv.Uses) -> Reader:
    return lambda root, download: tv.torchvision_files(name, root, uses, download=download)


def _folders(name: str, folder: str, *skip: str) -> Reader:
    return lambda root, download: tv.torchvision_folders(name, root, folder, download=download, skip=skip)


def _class_folders(folder: str) -> Reader:
    return lambda root, _: read_class_folders(root / folder)


def _variant(folder: str, name: str, *, numbered: bool = False) -> Reader:
    return lambda root, _: read_imagenet_variant(root, root / folder, name, numbered=numbered)


def _cifar(name: str) -> Reader:
    return lambda root, download: tv.torchvision_cifar(name, root, download=download)


_TRAIN_TEST, _MERGED, _QUARTER = "train; test", "train + val; test", "none official: a quarter for test"
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

IMAGE_SETS = (
    KnownSet("cifar10", "ID", 10, "cifar-10-batches-py", _TRAIN_TEST, _SEE,
             "Krizhevsky, Learning multiple layers of features from tiny images, 2009", _cifar("CIFAR10"), True),
    KnownSet("cifar100", "ID", 100, "cifar-100-python", _TRAIN_TEST, _SEE,
             "Krizhevsky, Learning multiple layers of features from tiny images, 2009", _cifar("CIFAR100"), True),
    KnownSet("flowers102", "ID", 102, "flowers-102", _MERGED, _SEE,
             "Nilsback and Zisserman, Automated flower classification, ICVGIP 2008",
             _files("Flowers102", tv.TRAIN_VAL_TEST), True),
    KnownSet("food101", "ID", 101, "food-101", _TRAIN_TEST, _SEE, "Bossard et al., Food-101, ECCV 2014",
             _files("Food101", tv.TRAIN_TEST), True),
    KnownSet("oxford-pets", "ID", 37, "oxford-iiit-pet", "trainval; test", "CC BY-SA 4.0",
             "Parkhi et al., Cats and dogs, CVPR 2012",
             lambda root, download: tv.torchvision_pets(root, download=download), True),
    KnownSet("stanford-cars", "ID", 196, "stanford_cars", _TRAIN_TEST, _SEE,
             "Krause et al., 3D object representations for fine-grained categorization, 3dRR 2013",
             _files("StanfordCars", tv.TRAIN_TEST)),
    KnownSet("fgvc-aircraft", "ID", 100, "fgvc-aircraft-2013b", "trainval; test", "non-commercial research only",
             "Maji et al., Fine-grained visual classification of aircraft, 2013",
             _files("FGVCAircraft", tv.TRAINVAL_TEST), True),
    KnownSet("svhn", "ID", 10, "svhn", "train; test (extra left out)", "non-commercial use only",
             "Netzer et al., Reading digits in natural images, 2011",
             lambda root, download: tv.torchvision_svhn(root / "svhn", download=download), True),
    KnownSet("dtd", "ID", 47, "dtd", "train + val; test (partition 1)", _SEE,
             "Cimpoi et al., Describing textures in the wild, CVPR 2014", _files("DTD", tv.TRAIN_VAL_TEST), True),
    KnownSet("caltech101", "ID", 101, "caltech101/101_ObjectCategories", _QUARTER, "CC BY 4.0",
             "Fei-Fei et al., Learning generative visual models from few training examples, CVPRW 2004",
             _folders("Caltech101", "caltech101/101_ObjectCategories", "BACKGROUND_Google"), True),
    KnownSet("eurosat", "ID", 10, "eurosat/2750", _QUARTER, "MIT", "Helber et al., EuroSAT, JSTARS 2019",
             _folders("EuroSAT", "eurosat/2750"), True),
    KnownSet("pcam", "ID", 2, "pcam", _MERGED, "CC0", "Veeling et al., Rotation equivariant CNNs, MICCAI 2018",
             lambda root, download: tv.torchvision_pcam(root, download=download), True),
    KnownSet("resisc45", "ID", 45, "resisc45", _QUARTER, _SEE,
             "Cheng et al., Remote sensing image scene classification, Proc. IEEE 2017",
             _class_folders("resisc45")),
    KnownSet("rendered-sst2", "ID", 2, "rendered-sst2", _MERGED, _SEE, "Radford et al., CLIP, ICML 2021",
             _folders("RenderedSST2", "rendered-sst2"), True),
    KnownSet("imagenet", "pre-training", 1000, "imagenet", "train; val (in class folders) is test",
             "non-commercial research only, on request", "Russakovsky et al., ImageNet challenge, IJCV 2015",
             _class_folders("imagenet")),
    KnownSet("imagenet-v2", "OOD", 1000, "imagenetv2-matched-frequency-format-val", "all test", _SEE,
             "Recht et al., Do ImageNet classifiers generalize to ImageNet?, ICML 2019",
             _variant("imagenetv2-matched-frequency-format-val", "imagenet-v2", numbered=True)),
    KnownSet("imagenet-r", "OOD", 200, "imagenet-r", "all test", _SEE,
             "Hendrycks et al., The many faces of robustness, ICCV 2021", _variant("imagenet-r", "imagenet-r")),
    KnownSet("imagenet-a", "OOD", 200, "imagenet-a", "all test", _SEE,
             "Hendrycks et al., Natural adversarial examples, CVPR 2021", _variant("imagenet-a", "imagenet-a")),
    KnownSet("imagenet-sketch", "OOD", 1000, "sketch", "all test", _SEE,
             "Wang et al., Learning robust global representations, NeurIPS 2019",
             _variant("sketch", "imagenet-sketch")),
    KnownSet("domainnet", "OOD", 345, "domainnet", "train; test, of each of six domains", _SEE,
             "Peng et al., Moment matching for multi-source domain adaptation, ICCV 2019",
             lambda root, _: read_listed_domains(root / "domainnet", DOMAINS)),
)  # fmt: skip


def _text_set(
    name: str, use: Use, hub: str, inputs: tuple[str, ...], class_names: tuple[str, ...], splits: dict[str, str],
    citation: str,
) -> KnownSet:  # fmt: skip
    """A data set of the hub, or the same saved in `root / folder`; names and order of classes are given here."""
    source, _, config = hub.partition(":")
    folder = name.replace(":", "/")
    said = "; ".join(f"{split} is {use}" if split != use else split for split, use in splits.items())

    def read(root: Path, _: bool) -> Task:
        local = root / folder
        return read_hub(local if local.is_dir() else source, config=None if local.is_dir() else config or None,
                        name=name, inputs=inputs, label="label", class_names=class_names, splits=splits)  # fmt: skip

    return KnownSet(name, use, len(class_names), folder, said, _SEE, citation, read, True, hub)


_HELD_OUT = {"train": "train", "validation": "test"}  # GLUE hides the labels of its test splits
_SENTIMENT = ("negative", "positive")
_SAME = ("different", "same")  # one pair of names for MRPC and QQP, each the other's counterpart in GLUE-X
_ENTAILED = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")

# GLUE, and what GLUE-X tests on as far as the hub has it ready; for the rest of GLUE-X give the path of a table.
TEXT_SETS = (
    _text_set("glue:sst2", "text ID", "nyu-mll/glue:sst2", ("sentence",), _SENTIMENT, _HELD_OUT, _GLUE),
    _text_set("glue:cola", "text ID", "nyu-mll/glue:cola", ("sentence",), ("unacceptable", "acceptable"),
              _HELD_OUT, _GLUE),
    _text_set("glue:mrpc", "text ID", "nyu-mll/glue:mrpc", ("sentence1", "sentence2"), _SAME, _HELD_OUT, _GLUE),
    _text_set("glue:qqp", "text ID", "nyu-mll/glue:qqp", ("question1", "question2"), _SAME, _HELD_OUT, _GLUE),
    _text_set("glue:mnli", "text ID", "nyu-mll/glue:mnli", ("premise", "hypothesis"), _THREE,
              {"train": "train", "validation_matched": "test"}, _GLUE),
    _text_set("glue:qnli", "text ID", "nyu-mll/glue:qnli", ("question", "sentence"), _ENTAILED, _HELD_OUT, _GLUE),
    _text_set("glue:rte", "text ID", "nyu-mll/glue:rte", ("sentence1", "sentence2"), _ENTAILED, _HELD_OUT, _GLUE),
    _text_set("glue:mnli-mismatched", "text OOD", "nyu-mll/glue:mnli", ("premise", "hypothesis"), _THREE,
              {"validation_mismatched": "test"}, _GLUE),
    _text_set("snli", "text OOD", "stanfordnlp/snli", ("premise", "hypothesis"), _THREE,
              {"test": "test"}, "Bowman et al., SNLI, EMNLP 2015"),
    _text_set("imdb", "text OOD", "stanfordnlp/imdb", ("text",), _SENTIMENT, {"test": "test"},
              "Maas et al., Learning word vectors for sentiment analysis, ACL 2011"),
    _text_set("yelp-polarity", "text OOD", "fancyzhx/yelp_polarity", ("text",), _SENTIMENT, {"test": "test"},
              "Zhang et al., Character-level convolutional networks, NeurIPS 2015"),
    _text_set("amazon-polarity", "text OOD", "fancyzhx/amazon_polarity", ("content",), _SENTIMENT,
              {"test": "test"}, "Zhang et al., Character-level convolutional networks, NeurIPS 2015"),
)  # fmt: skip

KNOWN_SETS = {one.name: one for one in (*IMAGE_SETS, *TEXT_SETS)}


def datasets_dir() -> Path:
    """Directory of the data sets that have names: $NML_DATASETS, else `datasets` in the present directory."""
    return Path(os.environ.get("NML_DATASETS") or "datasets")


def is_known(name: str) -> bool:
    """Whether it names a data set: one of KNOWN_SETS, or domains of DomainNet as "domainnet:real,sketch"."""
    return name in KNOWN_SETS or name.startswith("domainnet:")


def is_present(known: KnownSet, root: Path) -> bool:
    """Whether a data set is below `root`, or in the cache of `datasets` for one of the hub."""
    return (root / known.folder).exists() or bool(known.hub and is_cached(*known.hub.split(":")))


def read_known(name: str, root: str | Path | None = None, *, download: bool = False) -> Task:
    """The data set of a name (see `is_known`), from below `root`, by default `datasets_dir()`.

    `download` lets torchvision fetch what is not there; sets of the hub are fetched in any case, once.
    Raises DataFileError if it is not there.
    """
    family, _, chosen = name.partition(":")
    known = KNOWN_SETS.get(name) or KNOWN_SETS[family]
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
    return known.read(root, download)
