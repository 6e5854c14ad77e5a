"""Data in the real formats, made once."""

from pathlib import Path

import pytest

from tests import miniatures


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Miniatures: ImageNet as JPEGs of many sizes, two classes of ImageNet-R, DomainNet, RESISC45, shards, texts."""
    root = tmp_path_factory.mktemp("data")
    miniatures.write_imagenet(root / "imagenet")
    for number, (name, folder) in enumerate([("imagenet-r", miniatures.SYNSETS[:2]), ("resisc45", miniatures.NAMES)]):
        miniatures.write_classes(root / name, folder, seed=number)
    miniatures.write_domainnet(root / "domainnet")
    miniatures.write_shards(root / "shards")
    miniatures.write_sentences(root / "glue" / "sst2", {"train": 24, "validation": 8})
    miniatures.write_sentences(root / "imdb", {"test": 10}, column="text", seed=1)
    miniatures.write_bert(root / "bert")
    miniatures.add_tiny_clips(root / "configs")
    return root
