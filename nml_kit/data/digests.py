"""The digest of many files, remembered until one of them is written to: a study would else read them for every run."""

import time
from collections.abc import Callable
from contextlib import suppress

from nml_kit.data.images import LazyImages, Stamp
from nml_kit.errors import DataFileError, StoreError
from nml_kit.store import Store, read_json, write_json

_SETTLED_SECONDS = 60.0


def digest_of(images: LazyImages) -> str:
    """`images.digest()`, remembered."""
    return remembered(images.stamp, images.digest)


def remembered(stamp_of: Callable[[], Stamp | None], compute: Callable[[], str]) -> str:
    """`compute()`, the digest of files: read from $NML_HOME if it is there for the very same files, sizes and times.

    Only what was last changed a minute before is remembered: a change within one tick of a clock would not be seen.
    What it stands for is the content alone; files that are moved or touched are read again, to the same digest.
    """
    stamp = stamp_of()
    if stamp is None:
        return compute()
    path = Store().root / "digests" / f"{stamp.digest}.json"
    with suppress(DataFileError):
        found = read_json(path)
        if isinstance(found, dict) and found.get("of") == stamp.digest and isinstance(found.get("digest"), str):
            return found["digest"]
    settled = stamp.changed < time.time_ns() - _SETTLED_SECONDS * 1e9
    digest = compute()
    if settled and stamp_of() == stamp:
        with suppress(StoreError):  # a home that cannot be written to costs time, nothing else
            write_json(path, {"of": stamp.digest, "digest": digest})
    return digest
