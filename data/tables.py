"""Write a task as Parquet in the Hugging Face image convention, the same bytes every time."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from assemble import Sample
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """Encode one image without loss, as one channel when its three are equal."""
    grey = bool((pixels == pixels[..., :1]).all())
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def features(class_names: Sequence[str], has_images: bool) -> dict:
    """Describe the columns for the `datasets` library."""
    text = {"dtype": "string", "_type": "Value"}
    columns: dict = {"image": {"_type": "Image"}} if has_images else {}
    columns["label"] = {"names": list(class_names), "_type": "ClassLabel"}
    return {"info": {"features": columns | dict.fromkeys(("caption", "domain", "source", "id", "split"), text)}}


def write_task(path: Path, title: str, license_summary: str, samples: Sequence[Sample]) -> None:
    """Write the samples, ordered by id, with class names and licence in the schema's metadata."""
    rows = sorted(samples, key=lambda sample: sample.id)
    class_names = sorted({row.label for row in rows})
    number = {name: index for index, name in enumerate(class_names)}
    columns: dict[str, pa.Array] = {}
    if rows[0].pixels is not None:
        pictures = [{"bytes": png(row.pixels), "path": f"{row.id}.png"} for row in rows if row.pixels is not None]
        columns["image"] = pa.array(pictures, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    columns["label"] = pa.array([number[row.label] for row in rows], pa.int32())
    for name in ("caption", "domain", "source", "id", "split"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.string())
    metadata = {
        "class_names": json.dumps(class_names, ensure_ascii=False),
        "huggingface": json.dumps(features(class_names, "image" in columns), ensure_ascii=False),
        "title": title,
        "license": license_summary,
    }
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression="zstd", compression_level=9, store_schema=True)
