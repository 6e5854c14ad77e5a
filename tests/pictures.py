"""Small pictures, encoded, for data sets that tests write in their own formats."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, *, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind)
    return buffer.getvalue()


def write_picture(path: Path, seed: int, **size: int) -> np.ndarray:
    """Write a picture in the format that the name asks for; return its pixels, as a PNG has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, **size)).save(path)
    return pixels(seed, **size)


def write_class_folders(root: Path, classes: list[str], splits: tuple[str, ...], each: int = 4) -> None:
    """`root/SPLIT/CLASS/0.png`, …; "" is no split."""
    seed = 0
    for split in splits:
        for class_name in classes:
            for number in range(each):
                seed += 1
                write_picture(root / split / class_name / f"{number}.png", seed)
