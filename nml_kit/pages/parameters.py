"""A notebook's source and parameters: read without nbformat, which takes over a second to load, and checked."""

import ast
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from nml_kit.errors import DataFileError, InvalidInputError, unknown_name


def read_source(path: str | Path) -> dict[str, Any]:
    """Read the cells of a notebook in format 4: type, source as one text, metadata, nothing more.

    Enough to check parameters; nbformat checks the whole before a kernel starts. Raises DataFileError otherwise.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4:
            raise ValueError(f"format {notebook['nbformat']}, expected 4")
        return {"cells": [_cell(cell) for cell in notebook["cells"]]}
    except FileNotFoundError as error:
        raise DataFileError(f"Expected a Jupyter notebook at {path}, got no such file; check the path.") from error
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataFileError(f"Expected a Jupyter notebook at {path}, got {type(error).__name__}: {error}") from error


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {"cell_type": cell["cell_type"], "source": "".join(cell["source"]), "metadata": dict(cell["metadata"])}
    kept["metadata"]["tags"] = sorted(map(str, kept["metadata"].get("tags", [])))
    return kept


def notebook_parameters(notebook: Mapping[str, Any], tag: str = "parameters") -> dict[str, Any]:
    """Return names and values of the first cell with this tag, assignments of plain literals: by default, the defaults.

    (papermill's own inspection goes line by line and misses defaults that hold "=" or span lines.)
    Raises InvalidInputError if the cell holds anything else.
    """
    return {name: value for name, value, _ in _assignments(notebook, tag)}


def notebook_choices(notebook: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the texts that a parameter may take, by name, where its comment starts with "one of".

    (Not an annotation `Literal[...]`: papermill does not see a parameter that has one, papermill#906.)
    Raises InvalidInputError as `notebook_parameters` does.

    >>> source = 'method: str = "LP"  # one of LP, MLP; the head'
    >>> notebook_choices({"cells": [{"source": source, "metadata": {"tags": ["parameters"]}}]})
    {'method': ('LP', 'MLP')}
    """
    listed = {name: re.match(r"one of ([^;]+)", comment) for name, _, comment in _assignments(notebook, "parameters")}
    return {name: tuple(text.strip() for text in match[1].split(",")) for name, match in listed.items() if match}


def notebook_fractions(notebook: Mapping[str, Any]) -> set[str]:
    """Return the parameters that are fractions or lists of them: numbers whose name or comment says so.

    It says "fraction", "ratio", "share" or "probability", in whatever number. Raises InvalidInputError as
    `notebook_parameters` does.

    >>> source = "ratio = 0.1\\nlevel = 0.95  # a probability\\nrate = 30.0"
    >>> sorted(notebook_fractions({"cells": [{"source": source, "metadata": {"tags": ["parameters"]}}]}))
    ['level', 'ratio']
    """
    words = re.compile(r"\b(fractions?|ratios?|shares?|probabilit(y|ies))\b")
    rows = _assignments(notebook, "parameters")
    return {name for name, value, text in rows if isinstance(value, float | list) and words.search(f"{name} {text}")}


def _assignments(notebook: Mapping[str, Any], tag: str) -> Iterator[tuple[str, Any, str]]:
    """Name, value and comment of each line."""
    source = next((cell["source"] for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])), "")
    try:
        for statement in ast.parse(source).body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
            if not isinstance(target, ast.Name) or not isinstance(statement, ast.Assign | ast.AnnAssign):
                raise ValueError(f"line {statement.lineno}")
            last_line = source.splitlines()[(statement.end_lineno or 1) - 1].encode()  # columns are counted in bytes
            comment = last_line[statement.end_col_offset :].decode().strip(" #")
            yield target.id, ast.literal_eval(statement.value or ast.Constant(None)), comment
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # as literal_eval documents
        raise InvalidInputError(
            f"Expected lines `name = literal` in the parameters cell, got another statement: {error}."
        ) from error


def check_parameters(
    params: Mapping[str, Any],
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, ...]] | None = None,
    fractions: Collection[str] = (),
) -> dict[str, Any]:
    """Return `params` fit for the notebook whose parameters cell holds `defaults`, `choices` and `fractions`.

    Raises UnknownNameError for an unknown name or choice, and InvalidInputError for a value that is no plain JSON
    literal, not of the default's type (an int may stand for a float; None takes any), or no fraction where one is due.

    >>> check_parameters({"rate": 1}, {"rate": 0.5, "task": "icons"})
    {'rate': 1.0}
    """
    checked = {}
    for name, value in params.items():
        if name not in defaults:
            raise unknown_name("parameter", name, defaults)
        checked[name] = _checked(name, value, defaults[name])
        parts = checked[name] if isinstance(checked[name], list) else [checked[name]]
        wrong = [part for part in parts if type(part) not in (int, float) or not 0 <= part <= 1]
        if name in fractions and wrong:
            raise InvalidInputError(
                f"Parameter {name!r}: expected a fraction from 0 to 1, got {wrong[0]!r}; 30 % is 0.3."
            )
        allowed = (choices or {}).get(name, (checked[name],))
        if checked[name] not in allowed:
            raise unknown_name(f"value of parameter {name!r}:", str(checked[name]), map(str, allowed))
    return checked


def _checked(name: str, value: Any, default: Any) -> Any:
    try:
        plain = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"Parameter {name!r}: expected a plain JSON value (text, number, true/false, null, list, mapping), "
            f"got {value!r} ({type(value).__name__}): {error}; convert it, as with `.item()`."
        ) from error
    if plain != value and not isinstance(value, tuple):
        raise InvalidInputError(f"Parameter {name!r}: expected text as keys, got {value!r}.")
    if isinstance(default, float) and not isinstance(plain, bool):
        with suppress(TypeError, ValueError, OverflowError):  # YAML reads 1 as int and 1e-3 as text
            if math.isfinite(plain := float(plain)):
                return plain
    elif default is None or type(plain) is (list if isinstance(default, tuple) else type(default)):
        return plain
    raise InvalidInputError(
        f"Parameter {name!r}: expected {type(default).__name__}, as in its default {default!r}, "
        f"got {value!r} ({type(value).__name__})."
    )
