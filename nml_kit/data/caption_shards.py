"""Caption noise for WebDataset shards: captions exchanged across all of them, in bounded memory, resumable."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from nml_kit.data.caption_plan import Caption, CaptionPlan, Mark, caption_plan
from nml_kit.data.shards import shard_paths
from nml_kit.data.tar import content_of, copy_with, sample_key, tar_members, whole_tar
from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.noise import changed_count, random_words
from nml_kit.store import explained, read_json, replacing, write_json

RECORD = "noise-record.parquet"
SETTINGS = "noise-settings.json"
# Raised whenever the same request would give other shards.
CAPTION_SHARDS_VERSION = 2


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
    Returns the record, a Parquet file in `out`: id, source (whose caption it has now) and changed of all samples, with
    a JSON text of settings and counts as its metadata "nml_kit" (see `read_noise_settings`).
    Memory does not grow with N, unless two texts are nearly all that could be exchanged. Killed at any moment and
    called again, it goes on where it was; a shard in `out` is always whole.
    Raises InvalidInputError for a bad argument, a key that occurs twice, an exchange that is impossible, or an `out`
    that holds something else, DataFileError for a shard that is missing or cut short, or a sample without caption,
    StoreError if `out` cannot be written to.
    Source: the paper's section 2 (caption noise of YFCC15M).

    >>> inject_caption_noise_into_shards("none-{0..1}.tar", "noisy", 0.1, seed=0)
    Traceback (most recent call last):
    nml_kit.errors.DataFileError: Expected 2 shards none-{0..1}.tar, but 2 are missing, as none-0.tar; restore them or \
change the pattern.
    """
    changed_count(ratio, 0)  # before all captions are read
    random_words([], seed, "caption")
    paths, out = sorted(shard_paths(pattern), key=lambda path: path.name), Path(out)
    names = [path.name for path in paths]
    _require_apart(paths, out)
    settings = {"version": CAPTION_SHARDS_VERSION, "ratio": float(ratio), "seed": int(seed), "caption": caption,
                "shards": names}  # fmt: skip
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / ".lock"):
        marks = _kept_marks(out, settings)
        for left in out.glob(".tmp-*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        if (out / RECORD).exists():
            for path in paths:
                _require_unchanged(path, marks[path.name])
        else:
            with caption_plan(out / ".work") as plan:
                _write_all(plan, paths, out, settings, progress)
        shutil.rmtree(out / ".work", ignore_errors=True)
    return out / RECORD


def read_noise_settings(record: str | Path) -> dict[str, Any]:
    """What a record's metadata says: version, requested_ratio, realised_ratio, seed, caption, samples and changed.

    Raises DataFileError if it is no such record.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return json.loads(pq.read_schema(record).metadata[b"nml_kit"])
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataFileError(f"Expected a record of caption noise at {record}, got {error}; make it again.") from error


def _write_all(plan: CaptionPlan, paths: Sequence[Path], out: Path, settings: dict[str, Any], progress: bool) -> None:
    known = plan.marks()
    for number, path in enumerate(tqdm(paths, "reading captions", unit="shard", disable=not progress)):
        if path.name in known:
            _require_unchanged(path, known[path.name])
        else:
            plan.add_shard(number, path.name, _mark(path), _captions(path, settings["caption"]), settings["seed"])
    plan.decide(settings["ratio"])
    marks, written = plan.marks(), plan.written()
    for number, path in enumerate(tqdm(paths, "writing shards", unit="shard", disable=not progress)):
        _require_unchanged(path, marks[path.name])
        if number not in written or not (out / path.name).exists():
            _write_shard(path, out / path.name, plan.new_captions(number))
            plan.add_written(number)
    samples, changed = plan.counts()
    about = {name: settings[name] for name in ("version", "seed", "caption")}
    about |= {"requested_ratio": settings["ratio"], "realised_ratio": changed / max(samples, 1), "samples": samples,
              "changed": changed}  # fmt: skip
    write_json(out / SETTINGS, {"settings": settings, "marks": marks})
    with replacing(out / RECORD) as temporary:
        plan.write_record(temporary, json.dumps(about, sort_keys=True))


def _captions(path: Path, suffix: str) -> Iterator[Caption]:
    """The caption of each sample of a shard."""
    with whole_tar(path), path.open("rb") as source:
        members = ((*sample_key(member.name), member) for member in tar_members(path))
        for key, sample in groupby((one for one in members if one[0]), itemgetter(0)):
            found = [member for _, kind, member in sample if kind == suffix]
            if len(found) != 1:
                raise DataFileError(
                    f"{path}: expected one caption (.{suffix}) for every sample, its members side by side, got "
                    f"{len(found)} for {key!r}; add it or leave that sample out."
                )
            try:
                key.encode()
                yield Caption(key, content_of(found[0], source).decode(), found[0].offset)
            except UnicodeError as error:
                raise DataFileError(
                    f"{path}: expected the name and the caption of {key!r} as UTF-8, got {error}; convert it."
                ) from error


def _write_shard(path: Path, target: Path, captions: Iterable[tuple[int, str]]) -> None:
    """Copy a shard, but with other captions for the members at some bytes."""
    with replacing(target) as temporary, whole_tar(path), path.open("rb") as source, temporary.open("wb") as copy:
        copy_with(source, copy, ((byte, text.encode()) for byte, text in captions))


def _require_apart(paths: Sequence[Path], out: Path) -> None:
    for path, following in pairwise(paths):
        if path.name == following.name:
            raise InvalidInputError(
                f"Expected shards of different names, got {path} and {following}; they go to one directory."
            )
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise InvalidInputError(f"Expected another directory than that of the shards, got {out} for both.")


def _kept_marks(out: Path, settings: dict[str, Any]) -> dict[str, Mark]:
    """Keep the settings in `out`, or find them there with marks of the shards once all is done.

    What was begun with other settings is not mixed with these.
    """
    if (out / SETTINGS).exists():
        found = read_json(out / SETTINGS)
        if not isinstance(found, dict) or found.get("settings") != settings:
            raise InvalidInputError(
                f"{out} holds captions exchanged with other settings, or of other shards; choose another directory, or "
                "delete it."
            )
        try:
            names = settings["shards"] if (out / RECORD).exists() else []
            return {name: Mark(*found["marks"][name]) for name in names}
        except (LookupError, TypeError) as error:
            raise DataFileError(
                f"{out / SETTINGS}: expected a mark of each shard beside the record, got {error!r}; delete {out}."
            ) from error
    if others := [name for name in (RECORD, *settings["shards"]) if (out / name).exists()]:
        raise InvalidInputError(
            f"Expected {out} to be without {others[0]}, which is not of this; choose another directory."
        )
    write_json(out / SETTINGS, {"settings": settings, "marks": {}})
    return {}


def _mark(path: Path) -> Mark:
    found = path.stat()
    with path.open("rb") as source:
        return Mark(found.st_size, found.st_mtime_ns, hashlib.file_digest(source, "sha256").hexdigest())


def _require_unchanged(path: Path, mark: Mark) -> None:
    """That a shard holds what it held; one that was not even touched is not read."""
    found = path.stat()
    if (found.st_size, found.st_mtime_ns) != mark[:2] and _mark(path).sha256 != mark.sha256:
        raise InvalidInputError(
            f"{path} has changed since its captions were read; restore it, or choose another directory for all."
        )
