"""Who gets whose caption among more samples than memory holds: `inject_caption_noise` in a database."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nml_kit._noise_draws import changed_count, hash_ids, nested_prefix
from nml_kit.errors import InvalidInputError, MissingDependencyError

_BATCH = 10_000  # rows
_MEMORY = "128MB"  # of the database: what does not fit lies in its temporary directory
_SCHEMA = pa.schema({"key": pa.string(), "text": pa.string(), "shard": pa.int64(), "selection": pa.uint64(),
                     "place": pa.uint64()})  # fmt: skip


class Caption(NamedTuple):
    """The caption of a sample and the number of its shard."""

    key: str
    text: str
    shard: int


class CaptionPlan:
    """A database of captions and of their exchange, in the directory `work`; a context manager that closes it."""

    def __init__(self, work: Path) -> None:
        try:
            import duckdb
        except ModuleNotFoundError as error:
            raise MissingDependencyError("Noise for shards needs duckdb: pip install 'nml_kit[shards]'.") from error
        work.mkdir(parents=True, exist_ok=True)
        self._database: Any = duckdb.connect(
            str(work / "plan.duckdb"),
            config={"memory_limit": _MEMORY, "temp_directory": str(work / "spilled"), "threads": 1},
        )
        self._do("SET enable_progress_bar = false")

    def __enter__(self) -> "CaptionPlan":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @property
    def is_whole(self) -> bool:
        """Whether `make` has come to its end, in this process or before."""
        return bool(self._number("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'whole'"))

    def make(self, captions: Iterable[Caption], ratio: float, seed: int) -> None:
        """Decide all: exactly what `inject_caption_noise` decides of the same keys, captions, ratio and seed.

        Raises InvalidInputError as that does, and for a key that occurs twice.
        """
        for (table,) in self._rows("SELECT table_name FROM duckdb_tables()"):
            self._do(f"DROP TABLE {table}")
        self._do("CREATE TABLE samples (key TEXT, text TEXT, shard BIGINT, selection UBIGINT, place UBIGINT)")
        for batch in _batches(captions, seed):
            self._database.register("batch", batch)
            self._do("INSERT INTO samples SELECT * FROM batch")
            self._database.unregister("batch")
        self._require_unique_keys()
        count = changed_count(ratio, self._number("SELECT count(*) FROM samples"))
        self._choose(count)
        self._exchange()
        self._do("DROP TABLE ranked")
        self._do("DROP TABLE chosen")
        self._do("CREATE TABLE whole AS SELECT true")

    def new_captions(self, shard: int) -> Iterator[tuple[str, str]]:
        """Key and new caption of each sample of one shard that gets another, in the order of the shard.

        Nothing else may be asked for meanwhile.
        """
        found = self._database.execute("SELECT key, text FROM exchanged WHERE shard = ? ORDER BY position", [shard])
        while rows := found.fetchmany(_BATCH):
            yield from rows

    def counts(self) -> dict[str, int]:
        """How many samples there are, and how many of them get another caption."""
        samples, changed = map(self._number, ("SELECT count(*) FROM samples", "SELECT count(*) FROM exchanged"))
        return {"samples": samples, "changed": changed}

    def write_record(self, path: Path, metadata: str) -> None:
        """Write id, source (the id whose caption it has now) and changed of all samples, sorted by id, as Parquet."""
        rows = (
            "SELECT s.key AS id, coalesce(e.source, s.key) AS source, e.key IS NOT NULL AS changed "
            "FROM samples s LEFT JOIN exchanged e ON s.key = e.key ORDER BY s.key"
        )
        self._do(
            f"COPY ({rows}) TO {_quoted(str(path))} (FORMAT parquet, KV_METADATA {{nml_kit: {_quoted(metadata)}}})"
        )

    def _require_unique_keys(self) -> None:
        twice = self._rows("SELECT key, count(*) FROM samples GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 1")
        for key, times in twice:
            raise InvalidInputError(f"Expected unique keys in all shards, got {key!r} {times} times; rename samples.")

    def _choose(self, count: int) -> None:
        """The table `chosen`: those that take part."""
        self._do("CREATE TABLE ranked AS SELECT *, rowid AS position FROM samples ORDER BY selection, place")
        often = self._number("SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM samples GROUP BY text)")
        if count >= 4 * often:  # then the first are chosen: a text may be left out only while it fills half of them
            self._do("CREATE TABLE chosen AS SELECT * FROM ranked WHERE rowid < ?", count)
            return
        # One text is more than a quarter of them: texts are in memory, each once.
        texts = self._database.sql("SELECT text FROM ranked ORDER BY rowid").to_arrow_table()["text"]
        picks = nested_prefix(texts.combine_chunks().dictionary_encode().to_pylist(), count)
        self._database.register("picks", pa.table({"rank": np.array(picks, dtype=np.int64)}))
        self._do("CREATE TABLE chosen AS SELECT r.* FROM ranked r JOIN picks p ON r.rowid = p.rank")
        self._database.unregister("picks")

    def _exchange(self) -> None:
        """The table `exchanged`: in random order, but equal texts together, a shift by the largest group of them."""
        self._do(
            "CREATE TABLE ordered AS SELECT key, chosen.text, shard, position FROM chosen "
            "JOIN (SELECT text, min(place) AS first FROM chosen GROUP BY text) AS groups ON chosen.text = groups.text "
            "ORDER BY first, place"
        )
        shift = self._number("SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM chosen GROUP BY text)")
        count = self._number("SELECT count(*) FROM chosen")
        self._do(
            "CREATE TABLE exchanged AS SELECT own.key, given.key AS source, given.text, own.shard, own.position "
            "FROM ordered AS own JOIN ordered AS given ON given.rowid = (own.rowid + ?) % ? ORDER BY own.position",
            shift, max(count, 1),
        )  # fmt: skip
        self._do("DROP TABLE ordered")

    def _do(self, statement: str, *values: int) -> None:
        self._database.execute(statement, values or None)

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._database.execute(query).fetchall()

    def _number(self, query: str) -> int:
        return int(self._rows(query)[0][0])


def _batches(captions: Iterable[Caption], seed: int) -> Iterator[pa.Table]:
    """Captions as tables with the random words of their keys."""
    batch: list[Caption] = []
    for caption in captions:
        batch.append(caption)
        if len(batch) == _BATCH:
            yield _hashed(batch, seed)
            batch = []
    if batch:
        yield _hashed(batch, seed)


def _hashed(batch: list[Caption], seed: int) -> pa.Table:
    keys, texts, shards = zip(*batch, strict=True)
    selection, place = hash_ids(keys, len(keys), seed, "caption")
    return pa.table([keys, texts, shards, selection, place], schema=_SCHEMA)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
