"""A data set that is in memory: NumPy arrays, torch tensors or lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nml_kit.data.task import Task, classes_of, make_task
from nml_kit.errors import InvalidInputError


def task_from_arrays(
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    name: str = "arrays",
    ids: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    captions: ArrayLike | None = None,
    domains: ArrayLike | None = None,
    splits: ArrayLike | None = None,
) -> Task:
    """A Task of images (N, H, W, 3) or (N, H, W) uint8, or of texts (N,), with labels (N,): arrays, tensors, or lists.

    Labels are numbers in 0..K−1, or texts, whose sorted values are the classes. Without `ids` rows are numbered;
    without `domains` all are one; without `splits` a quarter of each class is "test", drawn by a hash of the ids.
    Raises InvalidInputError for inputs or labels of other kinds, and as `Task` does.

    >>> task = task_from_arrays(np.zeros((8, 5, 4, 3), np.uint8), ["no", "yes"] * 4)
    >>> task.class_names, task.select(split="test").images.shape
    (('no', 'yes'), (2, 5, 4, 3))
    """
    values = np.asarray(inputs)
    texts = values.ndim == 1 and all(isinstance(value, str) for value in values.tolist())
    if not texts:
        values = _as_rgb(values)
    try:
        numbers, names = classes_of(np.asarray(labels))
    except ValueError as error:
        raise InvalidInputError(f"Expected labels as whole numbers or texts, got {error}.") from error
    given = {"captions": captions, "domains": domains, "splits": splits}
    columns = {column: None if one is None else np.asarray(one) for column, one in given.items()}
    if texts:
        columns["captions"] = values
    numbered = np.array([f"{row:09d}" for row in range(len(values))])
    return make_task(
        name,
        ids=numbered if ids is None else np.asarray(ids).astype(np.str_),
        labels=numbers,
        class_names=names if class_names is None else class_names,
        image_data=None if texts else values,
        **columns,
    )


def _as_rgb(images: NDArray[Any]) -> NDArray[np.uint8]:
    if images.dtype == np.uint8 and images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InvalidInputError(
            f"Expected images (N, H, W, 3) or (N, H, W) of uint8, or texts (N,), got {images.dtype} of shape "
            f"{images.shape}; put the channels last (`.permute(0, 2, 3, 1)`) and scale to 0..255."
        )
    return images
