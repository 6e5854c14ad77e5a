"""Caption noise for WebDataset shards: captions exchanged across all of them, in bounded memory, resumable."""

import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from nml_kit._caption_plan import Caption, CaptionPlan
from nml_kit._tar import sample_key, tar_members, whole_tar
from nml_kit.data_shards import shard_paths
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.files import explained, read_json, replacing, write_json

RECORD = "noise-record.parquet"
SETTINGS = "noise-settings.json"
# Raised whenever the same request would give other shards.
CAPTION_SHARDS_VERSION = 1


def inject_caption_noise_into_shards(
    pattern: str | Path,
    out: str | Path,
    ratio: float,
    *,
    seed: int,
    caption: str = "txt",
    progress: bool = True,
) -> Path:
    """Copy shards to the directory `out`, where ⌊ratio · N + ½⌋ of all N samples have exchanged captions.

    `pattern` names the shards, such as "in-{000..999}.tar"; a sample's id is its key, its caption the member with the
    suffix `caption` (a copy that a .json holds stays as it is). Who exchanges with whom is what `inject_caption_noise`
    decides of all samples with these ids, so it does not depend on how they are sharded; all else is copied as it is.
    Returns the record, a Parquet file in `out`: id, source (whose caption it has now) and changed of all samples.
    Memory does not grow with N, unless one text is more than a quarter of what changes. Killed at any moment and called
    again, it goes on; a shard in `out` is always whole.
    Raises InvalidInputError for a bad argument, a key that occurs twice, or an `out` that holds something else,
    DataFileError for a shard that is missing or cut short, or a sample without caption.
    Source: the paper's section 2 (caption noise of YFCC15M).

    >>> inject_caption_noise_into_shards("none-{0..1}.tar", "noisy", 0.1, seed=0)
    Traceback (most recent call last):
    nml_kit.errors.DataFileError: Expected 2 shards none-{0..1}.tar, but 2 are missing, as none-0.tar; restore them or \
change the pattern.
    """
    paths, out = shard_paths(pattern), Path(out)
    _require_apart(paths, out)
    settings = {
        "version": CAPTION_SHARDS_VERSION, "ratio": float(ratio), "seed": seed, "caption": caption,
        "shards": {path.name: _content_mark(path) for path in paths},
    }  # fmt: skip
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / ".lock"):
        _require_same_settings(out, settings)
        if not (out / RECORD).exists():
            _write_all(paths, out, settings, progress)
    return out / RECORD


def _write_all(paths: Sequence[Path], out: Path, settings: dict[str, Any], progress: bool) -> None:
    work = out / ".work"
    with CaptionPlan(work) as plan:
        if not plan.is_whole:
            captions = _captions(
                tqdm(paths, "reading captions", unit="shard", disable=not progress), settings["caption"]
            )
            plan.make(captions, settings["ratio"], settings["seed"])
        for number, path in enumerate(tqdm(paths, "writing shards", unit="shard", disable=not progress)):
            if not (out / path.name).exists():
                _write_shard(path, out / path.name, plan.new_captions(number), settings["caption"])
        counts = plan.counts()
        about = {name: settings[name] for name in ("version", "ratio", "seed")} | counts
        about["realised_ratio"] = counts["changed"] / max(counts["samples"], 1)
        with replacing(out / RECORD) as temporary:
            plan.write_record(temporary, json.dumps(about, sort_keys=True))
    shutil.rmtree(work)


def _captions(paths: Iterable[Path], suffix: str) -> Iterator[Caption]:
    for number, path in enumerate(paths):
        with whole_tar(path):
            members = ((*sample_key(member.name), content) for member, content in tar_members(path))
            for key, sample in groupby(members, itemgetter(0)):
                found = [content.read() for _, kind, content in sample if kind == suffix]
                if len(found) != 1:
                    raise DataFileError(
                        f"{path}: expected one caption (.{suffix}) for every sample, its members side by side, got "
                        f"{len(found)} for {key!r}; add it or leave that sample out."
                    )
                yield Caption(key, _text(found[0], key, path), number)


def _text(content: bytes, key: str, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: expected the caption of {key!r} as UTF-8, got {error}; convert it.") from error


def _write_shard(path: Path, target: Path, captions: Iterator[tuple[str, str]], suffix: str) -> None:
    """Copy a shard member by member, with other `captions` (key and text, in the order of the shard)."""
    changed, text = next(captions, ("", ""))
    with replacing(target) as temporary, whole_tar(path), tarfile.open(temporary, "w:") as copy:
        for member, content in tar_members(path):
            key, kind = sample_key(member.name)
            if kind == suffix and key == changed:
                content = io.BytesIO(text.encode())
                member.size = len(content.getvalue())
                changed, text = next(captions, ("", ""))
            copy.addfile(member, content)
            copy.members = []  # type: ignore[attr-defined] # it would keep them all


def _require_apart(paths: Sequence[Path], out: Path) -> None:
    names = [path.name for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidInputError(
            f"Expected shards of different names, got {min(twice)} twice; they go to one directory."
        )
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise InvalidInputError(f"Expected another directory than that of the shards, got {out} for both.")


def _require_same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Keep the settings in `out`, or find them there; what was begun with others is not mixed with these."""
    if (out / SETTINGS).exists():
        if read_json(out / SETTINGS) != settings:
            raise InvalidInputError(
                f"{out} holds shards of other settings or of shards that have changed since; choose another directory, "
                "or delete it."
            )
        return
    if others := [name for name in settings["shards"] if (out / name).exists()]:
        raise InvalidInputError(
            f"Expected {out} to be without {others[0]}, which is not of this; choose another directory."
        )
    write_json(out / SETTINGS, settings)


def _content_mark(path: Path) -> list[int]:
    """Size and time of a shard: by them one that changes between two calls is known without reading it."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
