"""What functions, classes and objects compute, as plain data: what is kept under such a key is of no other code."""

import dis
import re
import sys
import sysconfig
from collections.abc import Iterator
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from nml_kit.errors import InvalidInputError
from nml_kit.store.hashing import fingerprint

# Of a class: what Python, pickle and scikit-learn put there, and where it stands in a file.
_NOT_CODE = re.compile(
    r"__(module|dict|weakref|doc|annotations|annotate|annotate_func|annotations_cache|qualname|abstractmethods|slotnames"
    r"|firstlineno|static_attributes)__|_abc_impl|set_\w+_request"
)
_OF_MODULES = {"_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks"}  # that count
_BY_NAME = type | FunctionType | BuiltinFunctionType | np.ufunc
_Seen = dict[int, tuple[int, Any]]  # what was described already, by its id: its number, and itself, so that it lives


def described(value: Any) -> Any:
    """A value as data for `fingerprint`, the same in every process; of two that compute different things it differs.

    Numbers, texts, arrays and tensors count by content; containers and objects by what they hold, with their class;
    functions and classes of installed packages by name and version, others by their code and by all that it reads.
    Raises InvalidInputError, with the place, for what cannot be told in this way.

    >>> described(partial(int, base=2)) == described(partial(int, base=2)) != described(partial(int, base=3))
    True
    """
    return _described(value, "it", {})


def is_own(symbol: Any) -> bool:
    """Whether a class or function is of a notebook, a script or a module that is not installed."""
    name = str(getattr(symbol, "__module__", ""))
    return name == "__main__" or _is_edited(name)


def _described(value: Any, place: str, seen: _Seen) -> Any:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, _BY_NAME) and not is_own(value):
        return _name_of(value)
    if isinstance(value, np.ndarray | np.generic):
        return fingerprint(value if isinstance(value, np.ndarray) and value.dtype != object else value.tolist())
    if "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor):
        exact = value.detach().cpu().contiguous()
        return [str(value.dtype), fingerprint((exact.float() if "bfloat16" in str(value.dtype) else exact).numpy())]
    if id(value) in seen:
        return ["again", seen[id(value)][0]]
    seen[id(value)] = len(seen), value
    if isinstance(value, list | tuple | set | frozenset):
        items = [_described(item, f"{place}[{number}]", seen) for number, item in enumerate(value)]
        return sorted(items, key=fingerprint) if isinstance(value, set | frozenset) else items
    if isinstance(value, dict):
        return [[_described(key, place, seen), _described(item, f"{place}[{key!r}]", seen)]
                for key, item in value.items()]  # fmt: skip
    if isinstance(value, ModuleType):
        return [value.__name__, Path(str(value.__file__)).read_bytes() if _is_edited(value.__name__) else None]
    if isinstance(value, _BY_NAME):
        return _code_of(value, place, seen)
    return _object(value, place, seen)


def _object(value: Any, place: str, seen: _Seen) -> Any:
    """An object by its class and what it holds."""
    if isinstance(value, MethodType):
        parts: Any = [value.__func__, value.__self__]
    elif isinstance(value, partial):
        parts = [value.func, list(value.args), value.keywords]
    elif isinstance(value, staticmethod | classmethod | property):
        parts = [getattr(value, name, None) for name in ("__func__", "fget")]
    elif isinstance(value, Enum | range | slice | complex | Path) or type(value).__module__ == "torch":
        return [_name_of(type(value)), str(value)]  # such as torch.float16
    elif hasattr(value, "__dict__"):
        parts = _state(value)
    else:
        raise InvalidInputError(
            f"Expected functions, numbers, texts, arrays and objects of these, but {place} is a "
            f"{type(value).__name__}: results of other code could not be told apart. Pass it as a parameter, or a "
            "fingerprint of your own."
        )
    inside = parts.items() if isinstance(parts, dict) else enumerate(parts)
    described_class = _described(type(value), place, seen)
    return [described_class, [[name, _described(part, f"{place}.{name}", seen)] for name, part in inside]]


def _state(value: Any) -> dict[str, Any]:
    """The attributes of an object; of a torch module without what has no part in its forward pass."""
    if hasattr(value, "inlined_graph"):  # by TorchScript, with the lines that it came from in comments
        return {"graph": re.sub(r"#.*", "", str(value.inlined_graph)), "state": dict(value.state_dict())}
    parts = dict(vars(value))
    if "_forward_hooks" in parts:  # by ids that count up in a process
        bookkeeping = vars(sys.modules["torch"].nn.Module()).keys() - _OF_MODULES
        parts = {name: part for name, part in parts.items() if name not in bookkeeping}
        parts |= {name: list(parts[name].values()) for name in ("_forward_hooks", "_forward_pre_hooks")}
    if "_graph" in parts and hasattr(value, "code"):  # a module that torch.fx wrote
        parts["_graph"] = value.code
    return parts


def _name_of(symbol: Any) -> str:
    """The full name of what is installed, with the version of its package, but for those that keep their promises."""
    module = getattr(symbol, "__module__", None) or "numpy"
    package = str(module).partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", "")
    name = f"{module}.{getattr(symbol, '__qualname__', getattr(symbol, '__name__', ''))}"
    return name if package in ("torch", "nml_kit", "numpy", "sklearn") else f"{name} {version}".strip()


def _is_edited(name: str) -> bool:
    """Whether a module is not installed: its code may change while its version does not."""
    file = getattr(sys.modules.get(name), "__file__", None)
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    is_installed = file is None or any(Path(file).is_relative_to(root) for root in installed)
    return not is_installed and name.split(".")[0] != "nml_kit"


def _code_of(symbol: Any, place: str, seen: _Seen) -> Any:
    """Compiled code, and the values that it reads."""
    if isinstance(symbol, type):
        members = [item for base in symbol.__mro__ if is_own(base) for item in sorted(vars(base).items())]
        bases = [_name_of(base) for base in symbol.__mro__ if not is_own(base)]
        kept = [(name, value) for name, value in members if not _NOT_CODE.fullmatch(name)]
        return [bases, [[name, _described(value, f"{place}.{name}", seen)] for name, value in kept]]
    code = symbol.__code__
    read = {name: symbol.__globals__[name] for name in _globals_of(code) if name in symbol.__globals__}
    for name, cell in zip(code.co_freevars, symbol.__closure__ or (), strict=True):
        read[name] = None if name == "__class__" else cell.cell_contents
    read |= {"defaults": list(symbol.__defaults__ or ()), "keywords": dict(symbol.__kwdefaults__ or {})}
    return [_compiled(code), [[name, _described(value, repr(name), seen)] for name, value in read.items()]]


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
