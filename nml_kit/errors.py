"""The errors of nml_kit: one small family, each message says what was expected, what came and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class NMLError(Exception):
    """Base of every error that nml_kit raises on purpose."""


class InvalidInputError(NMLError, ValueError):
    """An argument, array or setting that the called function cannot accept."""


class UnknownNameError(InvalidInputError):
    """A name (data set, backbone, profile, parameter, …) that is not registered."""


class PrecisionLossError(NMLError, ArithmeticError):
    """A result that cannot be given to the promised accuracy from what was kept."""


class StoreError(NMLError, RuntimeError):
    """The store could not write or read an entry."""


class CorruptEntryError(StoreError):
    """A stored entry whose bytes do not match its manifest."""


class DataFileError(NMLError, RuntimeError):
    """A data file that is missing, cut short or not in the expected format."""


class ServiceError(NMLError, RuntimeError):
    """A service on the network that does not answer, or not as expected."""


class ProcessFailedError(NMLError, RuntimeError):
    """Another one of the processes that work together failed; the message is its error."""


class MissingDependencyError(NMLError, ImportError):
    """An optional package that the requested feature needs."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for an unregistered `name`, naming the nearest known one.

    >>> print(unknown_name("profile", "dmeo", ["demo", "small"]))
    Unknown profile 'dmeo': did you mean 'demo'? Known: demo, small.
    """
    known = sorted(known)
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return UnknownNameError(f"Unknown {kind} {name!r}: {hint}Known: {', '.join(known) or 'none'}.")
