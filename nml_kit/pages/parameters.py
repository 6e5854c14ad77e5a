"""A notebook's source and parameters: read without nbformat, which takes over a second to load, and checked."""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

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
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataFileError(f"Expected a Jupyter notebook at {path}, got {type(error).__name__}: {error}") from error


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    kept = {"cell_type": cell["cell_type"], "source": "".join(cell["source"]), "metadata": dict(cell["metadata"])}
    kept["metadata"]["tags"] = sorted(map(str, kept["metadata"].get("tags", [])))
    return kept


def notebook_parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return names and default values of the cell tagged "parameters": assignments of plain literals.

    (papermill's own inspection goes line by line and misses defaults that hold "=" or span lines.)
    Raises InvalidInputError if the cell holds anything else.
    """
    return {name: default for name, default, _ in _assignments(notebook)}


def run_parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that an executed notebook ran with: its defaults, and over them what papermill injected.

    Raises InvalidInputError as `notebook_parameters` does.

    >>> cells = [("parameters", "task = 'icons'"), ("injected-parameters", "task = 'emoji'")]
    >>> run_parameters({"cells": [{"source": source, "metadata": {"tags": [tag]}} for tag, source in cells]})
    {'task': 'emoji'}
    """
    injected = {name: value for name, value, _ in _assignments(notebook, "injected-parameters")}
    return notebook_parameters(notebook) | injected


def notebook_choices(notebook: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return the texts that a parameter may take, by name, where its comment starts with "one of".

    (Not an annotation `Literal[...]`: papermill does not see a parameter that has one, papermill#906.)
    Raises InvalidInputError as `notebook_parameters` does.

    >>> source = 'method: str = "LP"  # one of LP, MLP; the head'
    >>> notebook_choices({"cells": [{"source": source, "metadata": {"tags": ["parameters"]}}]})
    {'method': ('LP', 'MLP')}
    """
    return {name: choices for name, _, choices in _assignments(notebook) if choices}


def _assignments(notebook: Mapping[str, Any], tag: str = "parameters") -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    cells = [cell for cell in notebook["cells"] if tag in cell["metadata"].get("tags", [])]
    source = cells[0]["source"] if cells else ""
    try:
        for statement in ast.parse(source).body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
            if not isinstance(target, ast.Name) or not isinstance(statement, ast.Assign | ast.AnnAssign):
                raise ValueError(f"line {statement.lineno}")
            last_line = source.splitlines()[(statement.end_lineno or 1) - 1].encode()  # columns are counted in bytes
            comment = last_line[statement.end_col_offset :].decode()
            yield target.id, ast.literal_eval(statement.value or ast.Constant(None)), _choices(comment)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # as literal_eval documents
        raise InvalidInputError(
            f"Expected lines `name = literal` in the parameters cell, got another statement: {error}."
        ) from error


def _choices(comment: str) -> tuple[str, ...]:
    """The texts listed by "# one of LP, MLP; …"; none for any other comment."""
    match = re.match(r"\s*#\s*one of ([^;]+)", comment)
    return tuple(text.strip() for text in match[1].split(",")) if match else ()


def check_parameters(
    params: Mapping[str, Any], defaults: Mapping[str, Any], choices: Mapping[str, tuple[Any, ...]] | None = None
) -> dict[str, Any]:
    """Return `params` fit for the notebook whose parameters cell holds `defaults`, and `choices` where it has them.

    Raises UnknownNameError for an unknown name or choice, and InvalidInputError for a value that is no plain JSON
    literal or not of the default's type (an int may stand for a float; None takes any).

    >>> check_parameters({"rate": 1}, {"rate": 0.5, "task": "icons"})
    {'rate': 1.0}
    """
    checked = {name: _checked(name, value, defaults) for name, value in params.items()}
    for name, allowed in (choices or {}).items():
        if name in checked and checked[name] not in allowed:
            raise unknown_name(f"value of parameter {name!r}:", str(checked[name]), map(str, allowed))
    return checked


def _checked(name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if name not in defaults:
        raise unknown_name("parameter", name, defaults)
    default = defaults[name]
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
        try:
            number = float(plain)  # YAML reads 1 as int and 1e-3 as text
        except (TypeError, ValueError, OverflowError):
            _wrong_type(name, value, default)
        return number if math.isfinite(number) else _wrong_type(name, value, default)
    expected = list if isinstance(default, tuple) else type(default)
    if default is not None and type(plain) is not expected:
        _wrong_type(name, value, default)
    return plain


def _wrong_type(name: str, value: Any, default: Any) -> NoReturn:
    raise InvalidInputError(
        f"Parameter {name!r}: expected {type(default).__name__}, as in its default {default!r}, "
        f"got {value!r} ({type(value).__name__})."
    )
