"""Data sets and a model in their real formats, small enough for tests."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nml_kit.backbones import open_clip_library

COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 230], [230, 210, 50], [40, 210, 210], [220, 60, 210],
                    [240, 240, 240], [30, 30, 30]])  # fmt: skip
SYNSETS = tuple(f"n{number:08d}" for number in range(1440764, 1440772))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "red", "cat", "dog", "sat", "and"]
NAMES = ("red", "green", "blue", "yellow", "cyan", "magenta", "white", "black")


def picture(label: int, generator: np.random.Generator, *, style: str = "real") -> Image.Image:
    """A noisy picture of one colour, of one of several sizes; "sketch" is striped, "clipart" without noise."""
    height, width = generator.integers(36, 72, size=2)
    noise = 0 if style == "clipart" else 25
    pixels = COLOURS[label] + generator.normal(0, noise, (height, width, 3))
    if style == "sketch":
        pixels[::4] *= 0.3
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_jpeg(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=90)


def write_imagenet(root: Path, *, train: int = 12, val: int = 3, seed: int = 0) -> Path:
    """`root/train/n01440764/n01440764_0.JPEG` and so on: ImageNet-1K's folders, of eight classes."""
    generator = np.random.default_rng(seed)
    for split, each in (("train", train), ("val", val)):
        for label, synset in enumerate(SYNSETS):
            for number in range(each):
                write_jpeg(picture(label, generator), root / split / synset / f"{synset}_{number}.JPEG")
    return root


def write_classes(root: Path, names: Sequence[str], *, each: int = 8, seed: int = 0) -> None:
    """`root/NAME/0.jpg` and so on."""
    generator = np.random.default_rng(seed)
    for label, name in enumerate(names):
        for number in range(each):
            write_jpeg(picture(label, generator), root / name / f"{number}.jpg")


def write_shards(folder: Path, *, shards: int = 6, each: int = 8, seed: int = 0) -> str:
    """`folder/000000.tar` and so on, of pairs of .jpg and .txt; return their brace pattern."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        files = {}
        for number in range(each):
            label = (shard * each + number) % len(NAMES)
            buffer = io.BytesIO()
            picture(label, generator).save(buffer, format="JPEG")
            key = f"{shard:06d}{number:03d}"
            files |= {f"{key}.jpg": buffer.getvalue(), f"{key}.txt": f"{key} a {NAMES[label]} thing".encode()}
        write_tar(folder / f"{shard:06d}.tar", files)
    return f"{folder}/{{000000..{shards - 1:06d}}}.tar"


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_domainnet(root: Path, domains: tuple[str, ...] = ("real", "sketch", "clipart"), *, seed: int = 0) -> Path:
    """`root/real/red/real_0.jpg`, and `root/real_train.txt` and so on, which list them with labels."""
    generator = np.random.default_rng(seed)
    for domain in domains:
        for split, numbers in (("train", range(4)), ("test", range(4, 6))):
            lines = []
            for label, name in enumerate(NAMES):
                for number in numbers:
                    file = f"{domain}/{name}/{domain}_{number}.jpg"
                    write_jpeg(picture(label, generator, style=domain), root / file)
                    lines.append(f"{file} {label}")
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_sentences(folder: Path, splits: dict[str, int], *, column: str = "sentence", seed: int = 0) -> None:
    """Texts of `WORDS` as Hugging Face's `datasets` saves GLUE's: "cat" in them is positive, "dog" negative."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    generator = np.random.default_rng(seed)
    features = Features({column: Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    parts = {}
    for split, count in splits.items():
        labels = np.arange(count) % 2
        words = generator.choice(["a", "the", "red", "sat", "and"], size=(count, 4))
        texts = [" ".join([*row, ("dog", "cat")[label]]) for row, label in zip(words, labels, strict=True)]
        parts[split] = Dataset.from_dict({column: texts, "label": labels.tolist()}, features=features)
    DatasetDict(parts).save_to_disk(folder)


def write_bert(directory: Path, *, seed: int = 0, **changes) -> Path:
    """A tiny BERT with random weights and a tokenizer of `WORDS`, as transformers saves them."""
    import transformers

    config = transformers.BertConfig(**{
        "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 8, "initializer_range": 0.5, **changes,
    })  # fmt: skip
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    return directory


def add_tiny_clips(folder: Path) -> None:
    """Let open_clip know "nml-tiny-RN", its own ResNet with attention pooling, as RN50, and "nml-tiny-ViT"."""
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    size = {"image_size": 32, "head_width": 32}
    vision = {
        "nml-tiny-RN": size | {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "nml-tiny-ViT": size | {"layers": 1, "width": 32, "patch_size": 8},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in vision.items():
        config = {"embed_dim": 32, "quick_gelu": name == "nml-tiny-ViT", "vision_cfg": network, "text_cfg": text}
        (folder / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip_library().add_model_config(folder)
