"""The shipped data keep their promises: format, balance, licences, identities, no test image with a copy in train."""

import hashlib
import io
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

DATA = Path(__file__).parents[2] / "data"
IMAGE_TASKS = ("icons-pretrain", "icons", "icons-rare", "icons-badges", "emoji", "fashion", "digits")
TASKS = (*IMAGE_TASKS, "emoji-text")
CLASSES = {
    "icons-pretrain": 120,
    "icons": 24,
    "icons-rare": 65,
    "icons-badges": 14,
    "emoji": 30,
    "fashion": 10,
    "digits": 10,
    "emoji-text": 30,
}
ALLOWED = {
    "MIT",
    "Apache-2.0",
    "ISC",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "Unlicense",
    "CC-BY-4.0",
    "CC-BY-3.0",
}
HASH_BITS, DRAWING_COSINES, PHOTO_COSINES = 6, (0.93, 0.95), (0.97, 0.97)
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def tables() -> dict[str, pa.Table]:
    """Read every shipped file once."""
    return {task: pq.read_table(DATA / f"{task}.parquet") for task in TASKS}


@pytest.fixture(scope="module")
def images(tables: dict[str, pa.Table]) -> dict[str, np.ndarray]:
    """Decode every image as grey: uint8 (N, 32, 32)."""

    def grey(png: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(png)) as picture:
            assert picture.format == "PNG"
            assert picture.mode in {"RGB", "L"}
            return np.asarray(picture.convert("L"))

    return {task: np.stack([grey(cell["bytes"]) for cell in tables[task]["image"].to_pylist()]) for task in IMAGE_TASKS}


def column(table: pa.Table, name: str) -> np.ndarray:
    """Return one column as an array of objects."""
    return np.array(table[name].to_pylist(), dtype=object)


def class_names(table: pa.Table) -> list[str]:
    """Return the class names of the schema's metadata."""
    return json.loads(table.schema.metadata[b"class_names"])


@pytest.mark.parametrize("task", TASKS)
def test_schema_and_metadata(tables: dict[str, pa.Table], task: str) -> None:
    table = tables[task]
    picture = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))] if task in IMAGE_TASKS else []
    texts = [(name, pa.string()) for name in ("caption", "domain", "source", "id", "split")]
    assert table.schema.remove_metadata() == pa.schema([*picture, ("label", pa.int32()), *texts])
    assert all(table[name].null_count == 0 for name in table.column_names)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["label"] == {"names": class_names(table), "_type": "ClassLabel"}
    assert table.schema.metadata[b"title"]


@pytest.mark.parametrize("task", TASKS)
def test_every_class_is_in_both_splits_and_ids_are_unique(tables: dict[str, pa.Table], task: str) -> None:
    table = tables[task]
    names = class_names(table)
    assert len(names) == len(set(names)) == CLASSES[task]
    assert len(set(table["id"].to_pylist())) == len(table)
    assert all(caption.strip() for caption in table["caption"].to_pylist())
    present = set(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert present == {(label, split) for label in range(len(names)) for split in ("train", "test")}


def test_balance(tables: dict[str, pa.Table]) -> None:
    fewest = {"icons-pretrain": (45, 12), "icons": (40, 20), "icons-rare": (14, 6), "fashion": (320, 80)}
    for task, (train, test) in fewest.items():
        counts = Counter(zip(tables[task]["label"].to_pylist(), tables[task]["split"].to_pylist(), strict=True))
        assert min(count for (_, split), count in counts.items() if split == "train") >= train, task
        assert min(count for (_, split), count in counts.items() if split == "test") >= test, task
    cells = set(zip(tables["icons"]["label"].to_pylist(), tables["icons"]["domain"].to_pylist(), strict=True))
    assert len(cells) == 24 * 4


def test_images_are_32_by_32_and_show_something(images: dict[str, np.ndarray]) -> None:
    for task, pixels in images.items():
        assert pixels.shape[1:] == (32, 32), task
        assert np.ptp(pixels.reshape(len(pixels), -1), axis=1).min() > 10, task


def test_pretraining_and_held_out_concepts_are_disjoint(tables: dict[str, pa.Table]) -> None:
    groups = [set(class_names(tables[task])) for task in ("icons-pretrain", "icons", "icons-rare")]
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_an_identity_is_in_one_split(tables: dict[str, pa.Table]) -> None:
    split_of: dict[str, str] = {}
    for task in ("emoji", "emoji-text"):
        for sample, split in zip(tables[task]["id"].to_pylist(), tables[task]["split"].to_pylist(), strict=True):
            assert split_of.setdefault(sample.split("/")[0], split) == split, sample
    objects: dict[str, str] = {}
    badges = tables["icons-badges"]
    for caption, split in zip(badges["caption"].to_pylist(), badges["split"].to_pylist(), strict=True):
        assert objects.setdefault(caption.split()[0], split) == split, caption
    caption, split = (column(tables["emoji-text"], name) for name in ("caption", "split"))
    assert not set(caption[split == "train"]) & set(caption[split == "test"])


def test_every_source_is_attributed_under_an_allowed_licence_whose_text_is_here(tables: dict[str, pa.Table]) -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| (\S+) \| (\d+) \|$", readme, flags=re.MULTILINE)
    stated = {source: int(count) for source, _, _, _, count in rows}
    assert stated == Counter(source for table in tables.values() for source in table["source"].to_pylist())
    licence_of = {source: licence for source, _, _, licence, _ in rows}
    assert set(licence_of.values()) <= ALLOWED
    assert all((DATA / "LICENSES" / f"{licence}.txt").stat().st_size > 500 for licence in set(licence_of.values()))
    for task, table in tables.items():
        used = {licence_of[source] for source in table["source"].to_pylist()}
        assert table.schema.metadata[b"license"].decode() == " AND ".join(sorted(used)), task


def test_size_and_checksums() -> None:
    others = {".cache", "__pycache__", "reference"}  # the reference results have a limit of their own
    files = [path for path in DATA.rglob("*") if path.is_file() and not others & set(path.parts)]
    assert sum(path.stat().st_size for path in files) <= 25e6
    listed = dict(line.split("  ")[::-1] for line in (DATA / "CHECKSUMS").read_text().splitlines())
    assert listed == {f"{t}.parquet": hashlib.sha256((DATA / f"{t}.parquet").read_bytes()).hexdigest() for t in TASKS}


def hashes(grey: np.ndarray) -> np.ndarray:
    """Hash grey images (N, 32, 32): signs (±1) of the 8×8 lowest DCT-II coefficients about their median."""
    frequency, position = np.arange(8)[:, None], np.arange(32)[None]
    basis = 2 * np.cos(np.pi * frequency * (2 * position + 1) / 64)
    low = np.round(basis @ grey.astype(np.float64) @ basis.T, 3).reshape(-1, 64)
    return np.where(low > np.median(low, axis=1)[:, None], 1, -1).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Make rows mean-free and of unit length."""
    rows = rows.reshape(len(rows), -1).astype(np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)


def cropped(grey: np.ndarray) -> np.ndarray:
    """Crop a grey image to what differs from its corners, a pale edge row counting in part, to 12×12."""
    contrast = np.abs(grey - np.median(grey[::31, ::31])) / 255
    box = [0.0, 0.0, 32.0, 32.0]
    for axis in (0, 1):
        profile = contrast.max(axis)
        drawn = [place for place, value in enumerate(profile) if value > 0.15]
        if drawn:
            box[axis] = drawn[0] + 1 - profile[drawn[0]] / profile.max()
            box[axis + 2] = drawn[-1] + profile[drawn[-1]] / profile.max()
    picture = Image.fromarray(grey.astype(np.float32)).resize((12, 12), Image.Resampling.BILINEAR, box=tuple(box))
    return np.asarray(picture)


def test_no_test_image_has_a_near_duplicate_in_any_train_set(
    tables: dict[str, pa.Table], images: dict[str, np.ndarray]
) -> None:
    grey = np.concatenate([images[task] for task in IMAGE_TASKS])
    task = np.concatenate([np.full(len(images[name]), name) for name in IMAGE_TASKS])
    test = np.concatenate([column(tables[name], "split") == "test" for name in IMAGE_TASKS])
    bits = hashes(grey)
    whole = unit(grey.reshape(-1, 16, 2, 16, 2).mean((2, 4)))
    inner = unit(np.stack([cropped(picture) for picture in grey]))
    photo = {"fashion", "digits"}
    for name in IMAGE_TASKS:
        rows = np.flatnonzero(test & (task == name))
        for other in IMAGE_TASKS:
            against = np.flatnonzero(~test & (task == other))
            whole_bound, inner_bound = PHOTO_COSINES if name == other and name in photo else DRAWING_COSINES
            assert 32 - (bits[rows] @ bits[against].T).max() / 2 > HASH_BITS, (name, other)
            assert (whole[rows] @ whole[against].T).max() <= whole_bound + ROUNDING, (name, other)
            assert (inner[rows] @ inner[against].T).max() <= inner_bound + ROUNDING, (name, other)


def test_the_measure_finds_a_planted_copy(images: dict[str, np.ndarray]) -> None:
    original = images["icons"][:50].astype(np.float32)
    brighter = (0.8 * original + 30).round()
    shrunk = [Image.fromarray(p).resize((24, 24), Image.Resampling.BILINEAR) for p in images["icons"][:50]]
    smaller = np.stack([np.pad(np.asarray(picture), ((3, 5), (6, 2)), constant_values=255) for picture in shrunk])
    assert (32 - (hashes(original) * hashes(brighter)).sum(1) / 2 <= HASH_BITS).mean() > 0.9
    assert ((unit(original) * unit(brighter)).sum(1) > DRAWING_COSINES[0]).all()
    pairs = [unit(np.stack([cropped(picture) for picture in part])) for part in (original, smaller)]
    assert ((pairs[0] * pairs[1]).sum(1) > DRAWING_COSINES[1]).mean() > 0.9


def test_a_rebuilt_part_is_what_is_shipped(
    tables: dict[str, pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py", reason="the build's own dependencies are not installed (data/requirements.txt)")
    monkeypatch.syspath_prepend(str(DATA))
    loaded = set(sys.modules)
    try:
        from build import TITLES, digits_task
        from render import render
        from tables import write_task

        paths = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
        for path in paths:
            write_task(path, TITLES["digits"], "CC-BY-4.0", digits_task())
        svg = '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><circle cx="32" cy="32" r="20"/></svg>'
        assert hashlib.sha256(render(svg).tobytes()).hexdigest() == hashlib.sha256(render(svg).tobytes()).hexdigest()
    finally:
        for name in set(sys.modules) - loaded:
            if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == DATA:
                del sys.modules[name]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    rebuilt = pq.read_table(paths[0])
    assert rebuilt.schema.metadata == tables["digits"].schema.metadata
    columns = ["id", "label", "split", "caption"]
    assert rebuilt.select(columns).to_pylist() == tables["digits"].select(columns).to_pylist()
