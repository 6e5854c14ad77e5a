"""Who gets whose caption among more samples than memory holds: `inject_caption_noise` in a database."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nml_kit.errors import InvalidInputError, MissingDependencyError, StoreError
from nml_kit.noise import changed_count, nested_prefix, random_words

_BATCH = 10_000  # rows
_MEMORY = "128MB"  # of the database: what does not fit lies in its temporary directory
_TABLES = """
CREATE TABLE IF NOT EXISTS shards (shard BIGINT, name TEXT, bytes BIGINT, modified BIGINT, sha256 TEXT);
CREATE TABLE IF NOT EXISTS written (shard BIGINT);
CREATE TABLE IF NOT EXISTS samples (sample BIGINT, shard BIGINT, byte BIGINT, key TEXT, caption TEXT,
                                    selection UBIGINT, place UBIGINT, text UBIGINT, text2 UBIGINT);
"""


class Mark(NamedTuple):
    """What a shard was when it was read: its size in bytes, the time of its last change in ns, its sha256."""

    bytes: int
    modified: int
    sha256: str


class Caption(NamedTuple):
    """A sample's key and caption, and the byte of its shard where the caption's header begins."""

    key: str
    text: str
    byte: int


@contextmanager
def caption_plan(work: Path) -> Iterator["CaptionPlan"]:
    """The plan in the directory `work`, as far as it is made; everything is kept there at once, or not at all.

    Raises MissingDependencyError without duckdb, StoreError if the directory cannot be worked in.
    """
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise MissingDependencyError("Noise for shards needs duckdb: pip install 'nml_kit[shards]'.") from error
    except ImportError as error:
        if not _is_interrupt(error):
            raise
        raise KeyboardInterrupt from error
    work.mkdir(parents=True, exist_ok=True)
    spilled = work / "spilled"
    shutil.rmtree(spilled, ignore_errors=True)  # a killed process left it
    config: dict[str, Any] = {"memory_limit": _MEMORY, "temp_directory": str(spilled), "threads": 1}
    try:
        with duckdb.connect(str(work / "plan.duckdb"), config=config) as database:
            database.execute("SET enable_progress_bar = false")  # it would go to stdout
            database.execute(_TABLES)
            yield CaptionPlan(database)
    except (duckdb.Error, RuntimeError) as error:
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        if not isinstance(error, duckdb.Error):
            raise
        raise StoreError(
            f"Expected to work in {work}, got: {error} Make room there and run again, what is done is kept; if that "
            "does not help, delete it and begin anew."
        ) from error


def _is_interrupt(error: Exception) -> bool:
    """Whether it is what duckdb makes of Ctrl-C: while it is loaded, in a query, or while it is handed rows."""
    signs = ("INTERRUPT Error", "Query interrupted", "KeyboardInterrupt")
    return isinstance(error.__cause__, KeyboardInterrupt) or any(sign in str(error) for sign in signs)


class CaptionPlan:
    """Captions of shards, and their exchange."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def marks(self) -> dict[str, Mark]:
        """The shards that were read, by name."""
        return {name: Mark(*mark) for name, *mark in self._rows("SELECT name, bytes, modified, sha256 FROM shards")}

    def add_shard(self, shard: int, name: str, mark: Mark, captions: Iterable[Caption], seed: int) -> None:
        """Keep the caption of each sample of a shard, all or none of them."""
        self._do("BEGIN")  # what is not committed when the database is closed, is not kept
        first = self._number("SELECT count(*) FROM samples")
        captions = iter(captions)
        while batch := list(islice(captions, _BATCH)):
            with self._as_table("batch", _hashed(batch, first, shard, seed)):
                self._do("INSERT INTO samples SELECT * FROM batch")
            first += len(batch)
        self._do("INSERT INTO shards VALUES (?, ?, ?, ?, ?)", shard, name, *mark)
        self._do("COMMIT")

    def decide(self, ratio: float) -> None:
        """Decide all, unless it is: exactly what `inject_caption_noise` decides of the same keys, captions and ratio.

        Captions are the same text if they are so without white space around them, as a task reads them.
        Raises InvalidInputError as that does, and for a key that occurs twice.
        """
        if self._number("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'exchanged'"):
            return
        self._require_unique_keys()
        count = changed_count(ratio, self._number("SELECT count(*) FROM samples"))
        self._do("CREATE TEMP TABLE ranked AS SELECT sample, place, text, text2 FROM samples ORDER BY selection, place")
        self._choose(count)
        self._exchange(count)

    def new_captions(self, shard: int) -> Iterator[tuple[int, str]]:
        """Where the caption of each sample of one shard is that gets another, in that order, and the other caption.

        Nothing else may be asked for meanwhile.
        """
        yield from self._streamed("SELECT byte, caption FROM exchanged WHERE shard = ? ORDER BY byte", shard)

    def written(self) -> set[int]:
        """The shards whose copies are whole."""
        return {shard for (shard,) in self._rows("SELECT shard FROM written")}

    def add_written(self, shard: int) -> None:
        """Keep that the copy of a shard is whole."""
        self._do("INSERT INTO written VALUES (?)", shard)

    def counts(self) -> tuple[int, int]:
        """How many samples there are, and how many of them get another caption."""
        return self._number("SELECT count(*) FROM samples"), self._number("SELECT count(*) FROM exchanged")

    def write_record(self, path: Path, metadata: str) -> None:
        """Write id, source (the id whose caption it has now) and changed of all samples, sorted by id, as Parquet."""
        rows = (
            "SELECT key AS id, coalesce(source, key) AS source, source IS NOT NULL AS changed "
            "FROM samples LEFT JOIN (SELECT sample, source FROM exchanged) USING (sample) ORDER BY key"
        )
        self._do(
            f"COPY ({rows}) TO {_quoted(str(path))} (FORMAT parquet, KV_METADATA {{nml_kit: {_quoted(metadata)}}})"
        )

    def _require_unique_keys(self) -> None:
        for key, one, other in self._rows(
            "SELECT key, s.name, t.name FROM (SELECT key, min(shard) AS a, max(shard) AS b FROM samples GROUP BY key "
            "HAVING count(*) > 1 ORDER BY key LIMIT 1) JOIN shards s ON s.shard = a JOIN shards t ON t.shard = b"
        ):
            raise InvalidInputError(
                f"Expected unique keys in all shards, got {key!r} twice, in {one} and {other}; rename samples."
            )

    def _choose(self, count: int) -> None:
        """The table `chosen`: those that take part, the very ones of `nested_prefix`."""
        self._do("CREATE TEMP TABLE chosen AS SELECT * FROM ranked WHERE rowid < ?", count)
        text, text2, uses = self._most_used()
        # A text is left out for later only while it fills half of what is chosen. So the first `count` are chosen, or
        # of one text and of all others the first half each, if no second text could ever be left out by then.
        if 2 * uses < count or not count:
            return
        self._do(
            "CREATE OR REPLACE TEMP TABLE chosen AS "
            "(SELECT * FROM ranked WHERE text = $1 AND text2 = $2 ORDER BY rowid LIMIT $3) UNION ALL "
            "(SELECT * FROM ranked WHERE text <> $1 OR text2 <> $2 ORDER BY rowid LIMIT $4)",
            text, text2, count // 2, count - count // 2,
        )  # fmt: skip
        _, _, uses = self._most_used(text, text2)
        if 2 * uses < count and self._number("SELECT count(*) FROM chosen") == count:
            return
        # Two texts are nearly all there is, or the exchange is impossible: ranks are in memory, and each text once.
        rows = "SELECT caption FROM ranked JOIN samples USING (sample) ORDER BY ranked.rowid"
        known: dict[str, str] = {}
        texts = [known.setdefault(one.strip(), one.strip()) for (one,) in self._streamed(rows)]
        picks = pa.table({"rank": np.array(nested_prefix(texts, count), dtype=np.int64)})
        with self._as_table("picks", picks):
            self._do(
                "CREATE OR REPLACE TEMP TABLE chosen AS SELECT ranked.* FROM ranked JOIN picks ON ranked.rowid = rank"
            )

    def _most_used(self, text: int | None = None, text2: int | None = None) -> tuple[int, int, int]:
        """The text, another than the given one, that most of `chosen` have, and how many."""
        found = self._rows(
            "SELECT text, text2, count(*) AS uses FROM chosen "
            "WHERE text IS DISTINCT FROM ? OR text2 IS DISTINCT FROM ? "
            "GROUP BY text, text2 ORDER BY uses DESC LIMIT 1",
            text, text2,
        )  # fmt: skip
        return found[0] if found else (0, 0, 0)

    def _exchange(self, count: int) -> None:
        """The table `exchanged`: in random order, but equal texts together, a shift by the largest group of them."""
        _, _, shift = self._most_used()
        self._do(
            "CREATE TEMP TABLE ordered AS SELECT sample FROM chosen "
            "JOIN (SELECT text, text2, min(place) AS first FROM chosen GROUP BY text, text2) USING (text, text2) "
            "ORDER BY first, place"
        )
        self._do(
            "CREATE TABLE exchanged AS SELECT own.sample, own.shard, own.byte, given.key AS source, given.caption "
            "FROM ordered AS o JOIN ordered AS g ON g.rowid = (o.rowid + ?) % ? "
            "JOIN samples AS own ON own.sample = o.sample JOIN samples AS given ON given.sample = g.sample "
            "ORDER BY own.sample",
            shift, max(count, 1),
        )  # fmt: skip

    @contextmanager
    def _as_table(self, name: str, table: pa.Table) -> Iterator[None]:
        self._database.register(name, table)
        yield
        self._database.unregister(name)  # not after an error: it would hide that one

    def _do(self, statement: str, *values: object) -> None:
        self._database.execute(statement, values or None)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return self._database.execute(query, values or None).fetchall()

    def _streamed(self, query: str, *values: object) -> Iterator[tuple[Any, ...]]:
        found = self._database.execute(query, values or None)
        while rows := found.fetchmany(_BATCH):
            yield from rows

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0][0])


def _hashed(batch: list[Caption], first: int, shard: int, seed: int) -> pa.Table:
    """Samples as a table, with the random words of their keys and 128 bits that stand for their texts."""
    keys, captions, places = zip(*batch, strict=True)
    digests = b"".join(hashlib.blake2b(text.strip().encode(), digest_size=16).digest() for text in captions)
    texts = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
    selection, place = random_words(keys, seed, "caption")
    return pa.table({"sample": np.arange(first, first + len(batch)), "shard": np.full(len(batch), shard),
                     "byte": places, "key": keys, "caption": captions, "selection": selection, "place": place,
                     "text": texts[:, 0], "text2": texts[:, 1]})  # fmt: skip


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
