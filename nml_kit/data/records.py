"""Noise records on disk: safetensors and JSON, the same bytes for the same record on every machine."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nml_kit.errors import CorruptEntryError, DataFileError, InvalidInputError
from nml_kit.noise import CaptionNoise, LabelNoise
from nml_kit.store import fingerprint, read_json, read_tensors, write_json, write_tensors

FORMAT_VERSION = 1
TENSORS = "noise.safetensors"
SETTINGS = "noise.json"
_RECORDS = {record.__name__: record for record in (LabelNoise, CaptionNoise)}
_AGAIN = "Save the record again with `save_noise`."


def noise_fingerprint(record: LabelNoise | CaptionNoise) -> str:
    """Hash a record, every label, text and setting of it, to 64 hex digits."""
    return fingerprint({"record": type(record).__name__, **_contents(record)})


def save_noise(record: LabelNoise | CaptionNoise, directory: Path | str) -> None:
    """Write a record as `noise.safetensors` (arrays) and `noise.json` (settings, fingerprint) into `directory`.

    The same record gives the same bytes. Raises StoreError when a file cannot be written.

    >>> import tempfile
    >>> from nml_kit import inject_label_noise
    >>> noise = inject_label_noise([0, 1, 2, 1], 0.5, num_classes=3, seed=0)
    >>> directory = tempfile.mkdtemp()
    >>> save_noise(noise, directory)
    >>> noise_fingerprint(load_noise(directory)) == noise_fingerprint(noise)
    True
    """
    contents = _contents(record)
    arrays = {name: value for name, value in contents.items() if isinstance(value, np.ndarray)}
    settings = {name: value for name, value in contents.items() if name not in arrays}
    if isinstance(record, CaptionNoise):
        del arrays["noisy"]  # clean[source]
        arrays |= _encode_texts(arrays.pop("clean"))
    write_tensors(Path(directory) / TENSORS, arrays)
    about = {"record": type(record).__name__, "format": FORMAT_VERSION, "fingerprint": noise_fingerprint(record)}
    write_json(Path(directory) / SETTINGS, about | {"settings": settings})


def load_noise(directory: Path | str) -> LabelNoise | CaptionNoise:
    """Read the record that `save_noise` wrote into `directory`.

    Raises DataFileError when a file is missing, cut short or of another kind, CorruptEntryError when the content is not
    what was saved.
    """
    path = Path(directory) / SETTINGS
    about = read_json(path)
    try:
        record_class, settings, expected = _RECORDS[about["record"]], dict(about["settings"]), about["fingerprint"]
        contents = settings | _decoded(record_class, read_tensors(path.with_name(TENSORS)))
        record = record_class(**contents)
        found = noise_fingerprint(record)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataFileError(
            f"Expected a noise record in {directory}, got other content ({error!r}). {_AGAIN}"
        ) from error
    if found != expected:
        raise CorruptEntryError(f"Expected noise record {directory} with fingerprint {expected}, got {found}. {_AGAIN}")
    return record


def _contents(record: LabelNoise | CaptionNoise) -> dict[str, Any]:
    if type(record) not in _RECORDS.values():
        raise InvalidInputError(f"Expected a LabelNoise or CaptionNoise record, got {type(record).__name__}.")
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _decoded(record_class: type, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if record_class is LabelNoise:
        return arrays
    clean = _decode_texts(arrays.pop("text_bytes"), arrays.pop("text_ends"))
    return arrays | {"clean": clean, "noisy": clean[arrays["source"]]}


def _encode_texts(texts: np.ndarray) -> dict[str, np.ndarray]:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return {"text_bytes": np.frombuffer(b"".join(encoded), np.uint8), "text_ends": ends}


def _decode_texts(content: np.ndarray, ends: np.ndarray) -> np.ndarray:
    starts, joined = np.concatenate([[0], ends[:-1]]), content.tobytes()
    texts = np.empty(len(ends), dtype=object)
    texts[:] = [joined[start:end].decode("utf-8", "surrogatepass") for start, end in zip(starts, ends, strict=True)]
    return texts
