"""What is fitted to features: methods by name, their settings to choose from, and those settings as plain data."""

import dis
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.heads import LinearProbe, MLPTune, NMTune
from nml_kit.inference import METHODS
from nml_kit.store import fingerprint
from nml_kit.study.profile import Profile

HeadMaker: TypeAlias = Callable[[str, Profile, int], BaseEstimator]
Method: TypeAlias = str | BaseEstimator | tuple[str | BaseEstimator, Mapping[str, Sequence[Any]]]
Methods: TypeAlias = Sequence[str] | Mapping[str, Method]
Candidates: TypeAlias = dict[str, BaseEstimator]
# Of a class: what Python, pickle and scikit-learn put there.
_NOT_CODE = re.compile(
    r"__(module|dict|weakref|doc|annotations|qualname|abstractmethods|slotnames)__|_abc_impl|set_\w+_request"
)


def make_head(method: str, profile: Profile, seed: int) -> BaseEstimator:
    """The head of a method in the profile's settings; UnknownNameError for an unknown method."""
    shared: dict[str, Any] = {"epochs": profile.head_epochs, "random_state": seed}
    if method == "LP":
        return LinearProbe(**shared)
    if method == "MLP":
        return MLPTune(recipe=profile.head_recipe, **shared)
    if method == "NMTune":
        return NMTune(recipe=profile.head_recipe, **shared)
    raise unknown_name("method", method, METHODS)


def candidates_of(methods: Methods, profile: Profile, seed: int, make: HeadMaker = make_head) -> dict[str, Candidates]:
    """Every method's candidates by name: one without a grid, one for each point of a grid.

    Every parameter called `random_state` is set to the seed, in nested estimators too. Raises InvalidInputError for
    what is no estimator, or if there is no method; UnknownNameError for a name that `make` does not know.
    """
    named = dict(methods) if isinstance(methods, Mapping) else {name: name for name in methods}
    if not named or isinstance(methods, str):
        raise InvalidInputError(f"Expected names of methods, or a mapping of names to heads, got {methods!r}.")
    candidates = {}
    for name, method in named.items():
        base, grid = method if isinstance(method, tuple) else (method, {})
        head = make(base, profile, seed) if isinstance(base, str) else base
        candidates[name] = expanded(name, head, grid, seed)
    return candidates


def expanded(name: str, head: BaseEstimator, grid: Mapping[str, Sequence[Any]], seed: int) -> Candidates:
    """A copy of the head for each point of the grid (`sklearn.model_selection.ParameterGrid`), by name.

    >>> list(expanded("LP", LinearProbe(), {"epochs": [10, 30]}, seed=0))
    ['LP epochs=10', 'LP epochs=30']
    """
    if isinstance(head, type) or not hasattr(head, "get_params"):
        raise InvalidInputError(
            f"Method {name!r}: expected a scikit-learn classifier, a Tuning or a name, alone or as (it, grid of "
            f"settings), got {head!r:.80}; derive your class from sklearn.base.BaseEstimator and pass an instance."
        )
    candidates = {}
    for point in ParameterGrid(grid):
        shown = [f"{parameter}={value}" for parameter, value in sorted(point.items())]
        candidate = clone(head).set_params(**point)
        seeds = [key for key in candidate.get_params() if key.split("__")[-1] == "random_state"]
        candidates[" ".join([name, *shown])] = candidate.set_params(**dict.fromkeys(seeds, seed))
    return candidates


def head_settings(head: BaseEstimator) -> dict[str, Any]:
    """The class and parameters of a head as plain data, those of estimators in it (as in a Pipeline) too.

    Classes and functions outside installed packages count by their code, and by what it reads: see `_code_of`.

    >>> head_settings(LinearProbe(epochs=3))["parameters"]["epochs"]
    3
    """
    parameters = {name: _plain(value) for name, value in head.get_params(deep=False).items()}
    code = {"code": _code_of(type(head), set())} if _is_own(type(head)) else {}
    return {"head": type(head).__name__, "parameters": parameters, **code}


def settings_hash(head: BaseEstimator) -> str:
    """Twelve hex digits that tell the settings of a head from others', the same in every process."""
    return fingerprint(head_settings(head))[:12]


def _plain(value: Any) -> Any:
    """A parameter without objects: estimators by their settings, functions by their names and, if own, their code."""
    if isinstance(value, BaseEstimator):
        return head_settings(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    name = str(getattr(value, "__name__", "<lambda>"))
    if callable(value) and _is_own(value) and isinstance(value, type | FunctionType):
        return _code_of(value, set())
    return f"{getattr(value, '__module__', '')}.{name}" if callable(value) and "<" not in name else value


def _is_own(symbol: Any) -> bool:
    """Whether a class or function is of a notebook, a script or a module that is not installed."""
    name = str(getattr(symbol, "__module__", ""))
    return name == "__main__" or _is_edited(name)


def _is_edited(name: str) -> bool:
    """Whether a module is not installed: its code may change while its version does not."""
    file = getattr(sys.modules.get(name), "__file__", None)
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    is_installed = file is None or any(Path(file).is_relative_to(root) for root in installed)
    return not is_installed and name.split(".")[0] != "nml_kit"


def _code_of(symbol: Any, seen: set[int]) -> Any:
    """What a class or function does, as plain data: its compiled code, and the own code and constants that it reads.

    Raises InvalidInputError where that cannot be told: a stored result might then be of other code.
    """
    if id(symbol) in seen:
        return None
    seen.add(id(symbol))
    if isinstance(symbol, type):
        members = [item for base in symbol.__mro__ if _is_own(base) for item in sorted(vars(base).items())]
        return [_value_of(name, value, seen) for name, value in members if not _NOT_CODE.fullmatch(name)]
    code = symbol.__code__
    read = {name: symbol.__globals__[name] for name in _globals_of(code) if name in symbol.__globals__}
    read |= {name: cell.cell_contents for name, cell in zip(code.co_freevars, symbol.__closure__ or (), strict=True)}
    read |= {"defaults": list(symbol.__defaults__ or ()), "keywords": dict(symbol.__kwdefaults__ or {})}
    return [_compiled(code), [_value_of(name, value, seen) for name, value in read.items()]]


def _value_of(name: str, value: Any, seen: set[int]) -> Any:
    """A member of a class, or what a function reads, with its name."""
    value = next((getattr(value, inside) for inside in ("__func__", "fget") if hasattr(value, inside)), value)
    if isinstance(value, FunctionType | type) and _is_own(value):
        return [name, _code_of(value, seen)]
    if isinstance(value, ModuleType):
        return [name, value.__name__, Path(str(value.__file__)).read_bytes() if _is_edited(value.__name__) else None]
    if isinstance(value, type | FunctionType | BuiltinFunctionType | np.ufunc):
        return [name, f"{getattr(value, '__module__', 'numpy')}.{value.__name__}"]
    try:
        return [name, fingerprint(_plain(value))]
    except InvalidInputError as error:
        raise InvalidInputError(
            f"Expected a head whose code reads functions, numbers, texts and arrays alone, but {name!r} is a "
            f"{type(value).__name__}: results of other code could not be told apart. Pass it as a parameter instead."
        ) from error


def _globals_of(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _globals_of(constant)


def _compiled(code: CodeType) -> list[Any]:
    """Instructions, names and constants, without places in files."""
    constants: list[Any] = []
    for constant in code.co_consts:
        inside = sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)
        constants.append(_compiled(constant) if isinstance(constant, CodeType) else inside)
    return [code.co_code, list(code.co_names), list(code.co_varnames), constants]
