"""Label noise that follows how much classes look alike: a transition matrix from the images of a training set."""

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from nml_kit.errors import InvalidInputError

_SIDE = 8  # pixels of a thumbnail: enough for shape and colour, blind to detail and to shifts of a pixel or two


def similarity_transition(
    images: UInt8[np.ndarray, "n h w 3"], labels: Int64[np.ndarray, " n"], num_classes: int
) -> Float64[np.ndarray, "k k"]:
    """P(noisy class | clean class) of a flipped label, float64 (K, K), in proportion to the similarity of the classes.

    `images` is uint8 (N, H, W, 3), `labels` (N,). Each class is the mean of its images as 8×8 thumbnails; two classes
    have the similarity exp(−d²/2h²), d the Euclidean distance of their means and h the mean distance of a class to its
    nearest. The diagonal is 0, each row sums to 1 up to rounding, and the more similar a class the more probable it is.
    Raises InvalidInputError for another shape, images below 8×8, fewer than two classes, or a class without image.

    >>> images = np.repeat(np.array([0, 40, 200], np.uint8), 8 * 8 * 3).reshape(3, 8, 8, 3)
    >>> matrix = similarity_transition(images, np.arange(3), 3)
    >>> matrix.diagonal().tolist(), bool(matrix[0, 1] > matrix[0, 2])
    ([0.0, 0.0, 0.0], True)
    """
    images, labels = np.asarray(images), np.asarray(labels)
    counts = np.bincount(labels, minlength=num_classes) if labels.size else np.zeros(num_classes)
    if images.ndim != 4 or min(images.shape[1:3], default=0) < _SIDE or len(images) != len(labels):
        raise InvalidInputError(
            f"Expected images (N, H, W, 3) of at least {_SIDE}×{_SIDE} pixels and N labels, got {images.shape} and "
            f"{labels.shape}."
        )
    if num_classes < 2 or len(counts) != num_classes or not counts.all():
        raise InvalidInputError(
            f"Expected images of each of at least 2 classes, got {num_classes} classes with {counts.tolist()} images."
        )
    # Thumbnails of means over equal blocks of pixels, from 0 to 1; a rest at the right and lower edge is cut off.
    height, width = (side // _SIDE for side in images.shape[1:3])
    blocks = images[:, : height * _SIDE, : width * _SIDE].reshape(len(images), _SIDE, height, _SIDE, width, -1)
    thumbnails = blocks.mean(axis=(2, 4)).reshape(len(images), -1) / 255
    means = np.stack([thumbnails[labels == label].mean(axis=0) for label in range(num_classes)])
    squares = np.stack([np.square(means - mean).sum(axis=1) for mean in means])
    np.fill_diagonal(squares, np.inf)
    nearest = squares.min(axis=1, keepdims=True)
    # Relative to the nearest class, so that a class far from all others does not underflow to zeros.
    scale = float(np.sqrt(nearest).mean())
    similarity = np.exp((nearest - squares) / (2 * scale**2)) if scale > 0 else 1.0 - np.eye(num_classes)
    # Rounded: the last bits, which differ between processors, would give each its own noise record.
    return np.round(similarity / similarity.sum(axis=1, keepdims=True), 9)
