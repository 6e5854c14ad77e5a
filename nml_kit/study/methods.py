"""What is fitted to features: methods by name, their settings to choose from, and those settings as plain data."""

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import ParameterGrid

from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.heads import LinearProbe, MLPTune, NMTune
from nml_kit.inference import METHODS
from nml_kit.store import described, fingerprint, is_own
from nml_kit.study.profile import Profile

HeadMaker: TypeAlias = Callable[[str, Profile, int], BaseEstimator]
Method: TypeAlias = str | BaseEstimator | tuple[str | BaseEstimator, Mapping[str, Sequence[Any]]]
Methods: TypeAlias = Sequence[str] | Mapping[str, Method]
Candidates: TypeAlias = dict[str, BaseEstimator]


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

    Classes and functions outside installed packages count by their code, and by what it reads: see `described`.

    >>> head_settings(LinearProbe(epochs=3))["parameters"]["epochs"]
    3
    """
    parameters = {name: _plain(value) for name, value in head.get_params(deep=False).items()}
    code = {"code": described(type(head))} if is_own(type(head)) else {}
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
    if callable(value) and is_own(value) and isinstance(value, type | FunctionType):
        return described(value)
    return f"{getattr(value, '__module__', '')}.{name}" if callable(value) and "<" not in name else value
