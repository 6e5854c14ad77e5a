"""A notebook's parameters: read from its parameters cell, and checked before anything runs."""

import ast
import json
import math
from typing import Any, NoReturn

from nbformat import NotebookNode

from nml_kit.errors import InvalidInputError, unknown_name


def notebook_parameters(notebook: NotebookNode) -> dict[str, Any]:
    """Return names and default values of the cell tagged "parameters": assignments of plain literals.

    (papermill's own inspection goes line by line and misses defaults that hold "=" or span lines.)
    Raises InvalidInputError if the cell holds anything else.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    defaults: dict[str, Any] = {}
    try:
        for statement in ast.parse(cells[0].source).body if cells else []:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
            if not isinstance(target, ast.Name) or not isinstance(statement, ast.Assign | ast.AnnAssign):
                raise ValueError(f"line {statement.lineno}")
            defaults[target.id] = ast.literal_eval(statement.value or ast.Constant(None))
    except (SyntaxError, ValueError) as error:
        raise InvalidInputError(
            f"Expected lines `name = literal` in the parameters cell, got another statement: {error}."
        ) from error
    return defaults


def check_parameters(params: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return `params` fit for the notebook whose parameters cell holds `defaults`.

    Raises UnknownNameError for an unknown name, and InvalidInputError for a value that is no plain JSON literal or
    not of the default's type (an int may stand for a float; None takes any).

    >>> check_parameters({"rate": 1}, {"rate": 0.5, "task": "icons"})
    {'rate': 1.0}
    """
    return {name: _checked(name, value, defaults) for name, value in params.items()}


def _checked(name: str, value: Any, defaults: dict[str, Any]) -> Any:
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
