"""Near-duplicates: how alike two images are, which to keep, which belong together.

Three views of an image, all grey: a 16×16 thumbnail; a 12×12 one cropped to what is drawn (blind to margin and scale);
both mean-free and of unit length so that a product is a cosine; and the 64-bit DCT perceptual hash.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK = 1024
INK_CONTRAST = 0.15


@dataclass(frozen=True)
class Likeness:
    """When two images count as alike: any cosine above, or the hash distance (bits of 64) at or below, its bound."""

    thumbnail: float
    cropped: float
    hash_bits: int


@dataclass(frozen=True)
class Views:
    """The three views of N images: thumbnails (N, 256), cropped thumbnails (N, 144), hashes ±1 (N, 64)."""

    thumbnail: np.ndarray
    cropped: np.ndarray
    hashes: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Views":
        """Return the views of some of the images."""
        return Views(self.thumbnail[rows], self.cropped[rows], self.hashes[rows])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.hashes)


def grey(images: np.ndarray) -> np.ndarray:
    """Return the luminance of uint8 images (N, 32, 32, 3) as in Pillow's mode L: whole numbers, float32 (N, 32, 32)."""
    weights = np.array([19595, 38470, 7471], dtype=np.int64)
    return ((images.astype(np.int64) @ weights + 0x8000) >> 16).astype(np.float32)


def unit_rows(small: np.ndarray) -> np.ndarray:
    """Flatten (N, side, side), remove each row's mean and scale it to unit length."""
    rows = small.reshape(len(small), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def edges(contrast: np.ndarray) -> tuple[float, float]:
    """Return where a profile of 32 contrasts (fractions) begins and ends: a pale edge row counts in part."""
    drawn = np.flatnonzero(contrast > INK_CONTRAST)
    if drawn.size == 0:
        return 0.0, float(len(contrast))
    first, last = int(drawn[0]), int(drawn[-1])
    return first + 1 - contrast[first] / contrast.max(), last + contrast[last] / contrast.max()


def crop_to_ink(picture: np.ndarray) -> np.ndarray:
    """Crop a grey image to what differs from its corners and resize it to 12×12."""
    contrast = np.abs(picture - np.median(picture[[0, 0, -1, -1], [0, -1, 0, -1]])) / 255
    (left, right), (top, bottom) = edges(contrast.max(0)), edges(contrast.max(1))
    crop = Image.fromarray(picture).resize((12, 12), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    return np.asarray(crop)


def views(images: np.ndarray) -> Views:
    """Compute the three views of uint8 images (N, 32, 32, 3)."""
    pictures = grey(images)
    low = dct(dct(pictures.astype(np.float64), axis=1), axis=2)[:, :8, :8].reshape(-1, 64)
    low = low.round(3)  # symmetric pictures have exact zeros: rounding keeps their bits from being numerical noise
    return Views(
        unit_rows(pictures.reshape(-1, 16, 2, 16, 2).mean((2, 4))),
        unit_rows(np.stack([crop_to_ink(picture) for picture in pictures])),
        np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.float32),
    )


def alike(left: Views, right: Views, bound: Likeness) -> np.ndarray:
    """Return all pairs (row of left, row of right) that are alike: int64 (P, 2)."""
    found = []
    for start in range(0, len(left), BLOCK):
        part = left[np.arange(start, min(start + BLOCK, len(left)))]
        hit = part.thumbnail @ right.thumbnail.T > bound.thumbnail
        hit |= part.cropped @ right.cropped.T > bound.cropped
        hit |= part.hashes @ right.hashes.T >= 64 - 2 * bound.hash_bits
        found.append(np.argwhere(hit) + np.array([start, 0]))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)


def representatives(pairs: np.ndarray, count: int) -> np.ndarray:
    """Keep the first image of every neighbourhood: boolean (count,), where no two kept images form a pair."""
    keep = np.ones(count, dtype=bool)
    neighbours: list[list[int]] = [[] for _ in range(count)]
    for first, second in pairs:
        if first > second:
            neighbours[first].append(second)
    for row, earlier in enumerate(neighbours):
        keep[row] = not any(keep[other] for other in earlier)
    return keep


def clusters(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the connected components of a graph: int (count,)."""
    graph = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
