"""Caption noise for WebDataset shards: captions exchanged across all of them, in bounded memory, resumable."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from nml_kit.data.images import file_digest
from nml_kit.data.shards import Caption, repeated_key, shard_captions, shard_paths, write_shard
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, StoreError
from nml_kit.noise import changed_count, nested_prefix, random_words
from nml_kit.store import delete_temporaries, explained, read_json, replacing, write_json

RECORD = "noise-record.parquet"
SETTINGS = "noise-settings.json"
# Raised whenever the same request would give other shards.
VERSION = 2
_BATCH = 10_000  # rows
_MEMORY = "128MB"  # of the database: what does not fit lies in its temporary directory
_TABLES = """
CREATE TABLE IF NOT EXISTS shards (shard BIGINT, name TEXT, sha256 TEXT, written BOOL);
CREATE TABLE IF NOT EXISTS samples (sample BIGINT, shard BIGINT, byte BIGINT, key TEXT, caption TEXT,
                                    selection UBIGINT, place UBIGINT, text UBIGINT);
"""
_REPEATED_KEY = """
SELECT key, min(name), max(name) FROM samples JOIN shards USING (shard)
GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 1
"""
_LARGEST_GROUP = "SELECT coalesce(max(uses), 0) FROM (SELECT count(*) AS uses FROM chosen GROUP BY text)"
# In random order, but equal texts together: each gets the caption that lies the largest group of them further.
_ORDERED = """
CREATE TEMP TABLE ordered AS SELECT sample FROM chosen
JOIN (SELECT text, min(place) AS first FROM chosen GROUP BY text) USING (text) ORDER BY first, place
"""
_EXCHANGED = """
CREATE TABLE exchanged AS SELECT own.sample, own.shard, own.byte, giver.key AS source, giver.caption
FROM ordered AS o JOIN ordered AS g ON g.rowid = (o.rowid + ?) % ?
JOIN samples AS own ON own.sample = o.sample JOIN samples AS giver ON giver.sample = g.sample ORDER BY own.sample
"""
_RECORD_ROWS = """
SELECT key AS id, coalesce(source, key) AS source, source IS NOT NULL AS changed
FROM samples LEFT JOIN (SELECT sample, source FROM exchanged) USING (sample) ORDER BY key
"""


def inject_caption_noise_into_shards(
    pattern: str | Path, out: str | Path, ratio: float, *, seed: int, caption: str = "txt", progress: bool = True
) -> Path:
    """Copy shards to the directory `out`, where ⌊ratio · N + ½⌋ of all N samples have exchanged captions.

    `pattern` names the shards, such as "in-{000..999}.tar"; a sample's id is its key, its caption the member with the
    suffix `caption` (a copy that a .json holds stays as it is). Who exchanges with whom is what `inject_caption_noise`
    decides of all samples with these ids, so it does not depend on how they are sharded; all else is copied as it is.
    Returns the record, a Parquet file in `out`: id, source (whose caption it has now) and changed of all samples, with
    a JSON text of settings and counts as its metadata "nml_kit" (see `read_noise_settings`).
    Memory does not grow with N, unless one text fills half of what could be exchanged. Killed at any moment and called
    again, it goes on where it was; a shard in `out` is always whole.
    Raises InvalidInputError for a bad argument, a key that occurs twice, an exchange that is impossible, or an `out`
    that holds something else, DataFileError for a shard that is missing or cut short, or a sample without caption,
    StoreError if `out` cannot be written to.

    >>> inject_caption_noise_into_shards("none-{0..1}.tar", "noisy", 0.1, seed=0)
    Traceback (most recent call last):
    nml_kit.errors.DataFileError: Expected 2 shards none-{0..1}.tar, but 2 are missing, as none-0.tar; restore them or \
change the pattern.
    """
    changed_count(ratio, 0)  # before all captions are read
    random_words([], seed, "caption")
    paths, out = sorted(shard_paths(pattern), key=lambda path: path.name), Path(out)
    _require_apart(paths, out)
    names = [path.name for path in paths]
    settings = {"version": VERSION, "ratio": float(ratio), "seed": int(seed), "caption": caption, "shards": names}
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(out / ".lock"):
        digests = _kept_digests(out, settings)
        delete_temporaries(out)
        if digests is None:
            with caption_plan(out / ".work") as plan:
                _write_all(plan, paths, out, settings, progress)
        else:
            _require_unchanged(paths, digests)
        shutil.rmtree(out / ".work", ignore_errors=True)
    return out / RECORD


def read_noise_settings(record: str | Path) -> dict[str, Any]:
    """What a record's metadata says of its making; raises DataFileError if it is no such record."""
    try:
        return json.loads(pq.read_schema(record).metadata[b"nml_kit"])
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataFileError(f"Expected a record of caption noise at {record}, got {error}; make it again.") from error


def _require_apart(paths: Sequence[Path], out: Path) -> None:
    for path, other in pairwise(paths):
        if path.name == other.name:
            raise InvalidInputError(
                f"Expected shards of different names, got {path} and {other}; they go to one place."
            )
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise InvalidInputError(f"Expected another directory than that of the shards, got {out} for both.")


def _kept_digests(out: Path, settings: dict[str, Any]) -> dict[str, str] | None:
    """Keep the settings in `out`, or find them there, with the digests of the shards once all is done.

    What was begun with other settings is not mixed with these.
    """
    if (out / SETTINGS).exists():
        kept = read_json(out / SETTINGS)
        if not isinstance(kept, dict) or kept.get("settings") != settings:
            holds = "captions exchanged with other settings, or of other shards"
            raise InvalidInputError(f"{out} holds {holds}; choose another directory, or delete it.")
        if not (out / RECORD).exists():
            return None
        digests = kept.get("sha256")
        if not isinstance(digests, dict) or set(digests) != set(settings["shards"]):
            raise DataFileError(f"{out / SETTINGS}: expected the sha256 of each shard, got {digests!r}; delete {out}.")
        return digests
    if others := [name for name in (RECORD, *settings["shards"]) if (out / name).exists()]:
        raise InvalidInputError(f"Expected {out} without {others[0]}, which is not of this; choose another directory.")
    write_json(out / SETTINGS, {"settings": settings})
    return None


def _write_all(plan: "CaptionPlan", paths: Sequence[Path], out: Path, settings: dict[str, Any], progress: bool) -> None:
    known = plan.digests()
    for number, path in enumerate(tqdm(paths, "reading captions", unit="shard", disable=not progress)):
        if path.name not in known:
            captions = shard_captions(path, settings["caption"])
            plan.add_shard(number, path.name, file_digest(path), captions, settings["seed"])
    plan.decide(settings["ratio"])
    digests = plan.digests()
    written = {shard for (shard,) in plan.run("SELECT shard FROM shards WHERE written").fetchall()}
    for number, path in enumerate(tqdm(paths, "writing shards", unit="shard", disable=not progress)):
        _require_unchanged([path], digests)
        if number not in written or not (out / path.name).exists():
            write_shard(path, out / path.name, plan.new_captions(number))
            plan.run("UPDATE shards SET written = true WHERE shard = ?", number)
    samples, changed = plan.number("SELECT count(*) FROM samples"), plan.number("SELECT count(*) FROM exchanged")
    about = {name: settings[name] for name in ("version", "seed", "caption")}
    about |= {"requested_ratio": settings["ratio"], "realised_ratio": changed / max(samples, 1)}
    notes = json.dumps(about | {"samples": samples, "changed": changed}, sort_keys=True)
    write_json(out / SETTINGS, {"settings": settings, "sha256": digests})
    with replacing(out / RECORD) as temporary:
        plan.write_record(temporary, notes)


def _require_unchanged(paths: Sequence[Path], digests: dict[str, str]) -> None:
    for path in paths:
        if file_digest(path) != digests[path.name]:
            raise InvalidInputError(
                f"{path} has changed since its captions were read; restore it, or choose another directory for all."
            )


@contextmanager
def caption_plan(work: Path) -> Iterator["CaptionPlan"]:
    """The plan in the directory `work`, as far as it is made; everything is kept there at once, or not at all.

    Raises MissingDependencyError without duckdb, StoreError if the directory cannot be worked in.
    """
    try:
        import duckdb
    except ImportError as error:
        _raise_interrupt(error)
        raise MissingDependencyError("Noise for shards needs duckdb: pip install 'nml_kit[shards]'.") from error
    work.mkdir(parents=True, exist_ok=True)
    spilled = work / "spilled"
    shutil.rmtree(spilled, ignore_errors=True)  # a killed process left it
    config: dict[str, Any] = {"memory_limit": _MEMORY, "temp_directory": str(spilled), "threads": 1}
    try:
        with duckdb.connect(str(work / "plan.duckdb"), config=config) as database:
            database.execute("SET enable_progress_bar = false")  # it would go to stdout
            database.execute(_TABLES)
            yield CaptionPlan(database)
    except (RuntimeError, duckdb.Error) as error:
        _raise_interrupt(error)
        if isinstance(error, RuntimeError):
            raise
        raise StoreError(
            f"Expected to work in {work}, got: {error} Make room there and run again, what is done is kept; if that "
            "does not help, delete it and begin anew."
        ) from error


def _raise_interrupt(error: Exception) -> None:
    """Raise Ctrl-C as such, whatever duckdb makes of it while it is loaded, in a query, or handed rows."""
    signs = ("INTERRUPT Error", "Query interrupted", "KeyboardInterrupt")
    if isinstance(error.__cause__, KeyboardInterrupt) or any(sign in str(error) for sign in signs):
        raise KeyboardInterrupt from error


class CaptionPlan:
    """Who gets whose caption among more samples than memory holds: `inject_caption_noise` in a database."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def run(self, statement: str, *values: object) -> Any:
        return self._database.execute(statement, values or None)

    def number(self, query: str) -> int:
        return int(self.run(query).fetchall()[0][0])

    def digests(self) -> dict[str, str]:
        """The sha256 of each shard that was read, by name."""
        return dict(self.run("SELECT name, sha256 FROM shards").fetchall())

    def add_shard(self, shard: int, name: str, digest: str, captions: Iterable[Caption], seed: int) -> None:
        """Keep the caption of each sample of a shard, all or none of them."""
        self.run("BEGIN")  # what is not committed when the database is closed, is not kept
        first, captions = self.number("SELECT count(*) FROM samples"), iter(captions)
        while batch := list(islice(captions, _BATCH)):
            self._database.from_arrow(_hashed(batch, first, shard, seed)).insert_into("samples")
            first += len(batch)
        self.run("INSERT INTO shards VALUES (?, ?, ?, false)", shard, name, digest)
        self.run("COMMIT")

    def decide(self, ratio: float) -> None:
        """Decide all, unless it is: exactly what `inject_caption_noise` decides of the same keys, captions and ratio.

        Captions are the same text if they are so without white space around them, as a task reads them.
        Raises InvalidInputError as that does, and for a key that occurs twice.
        """
        if self.number("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'exchanged'"):
            return
        for key, shard, other in self.run(_REPEATED_KEY).fetchall():
            raise repeated_key(key, shard, other)
        count = changed_count(ratio, self.number("SELECT count(*) FROM samples"))
        self.run("CREATE TEMP TABLE ranked AS SELECT sample, place, text FROM samples ORDER BY selection, place")
        self.run("CREATE TEMP TABLE chosen AS SELECT * FROM ranked WHERE rowid < ?", count)
        # `nested_prefix` leaves a text out for later only while it fills half of what is chosen, else it is the first.
        if count and 2 * self.number(_LARGEST_GROUP) >= count:
            captions = self.run("SELECT caption FROM ranked JOIN samples USING (sample) ORDER BY ranked.rowid")
            chosen = nested_prefix([caption.strip() for (caption,) in captions.fetchall()], count)
            self.run("CREATE OR REPLACE TEMP TABLE picks (rank BIGINT)")
            self._database.from_arrow(pa.table({"rank": pa.array(chosen, pa.int64())})).insert_into("picks")
            self.run("DELETE FROM chosen")
            self.run("INSERT INTO chosen SELECT ranked.* FROM ranked JOIN picks ON ranked.rowid = rank")
        self.run(_ORDERED)
        self.run(_EXCHANGED, self.number(_LARGEST_GROUP), max(count, 1))

    def new_captions(self, shard: int) -> Iterator[tuple[int, str]]:
        """Where the caption of each sample of one shard is that gets another, in that order, and the other caption.

        Nothing else may be asked for meanwhile.
        """
        rows = self.run("SELECT byte, caption FROM exchanged WHERE shard = ? ORDER BY byte", shard)
        while batch := rows.fetchmany(_BATCH):
            yield from batch

    def write_record(self, path: Path, metadata: str) -> None:
        """Write id, source (the id whose caption it has now) and changed of all samples, sorted by id, as Parquet."""
        file, notes = (text.replace("'", "''") for text in (str(path), metadata))
        self.run(f"COPY ({_RECORD_ROWS}) TO '{file}' (FORMAT parquet, KV_METADATA {{nml_kit: '{notes}'}})")


def _hashed(batch: Sequence[Caption], first: int, shard: int, seed: int) -> pa.Table:
    """Samples as rows of the table `samples`, with the random words of their keys and 64 bits that stand for a text.

    Some two of 15 million texts have the same bits with a probability of 6e-6; they would not be exchanged.
    """
    keys, captions, bytes_ = zip(*batch, strict=True)
    digests = b"".join(hashlib.blake2b(text.strip().encode(), digest_size=8).digest() for text in captions)
    numbers = np.arange(first, first + len(batch))
    selection, place = random_words(keys, seed, "caption")
    columns = [numbers, np.full(len(batch), shard), bytes_, keys, captions, selection, place]
    names = ["sample", "shard", "byte", "key", "caption", "selection", "place", "text"]
    return pa.table([*map(pa.array, columns), pa.array(np.frombuffer(digests, dtype="<u8"))], names)
