"""Suites: which notebooks to run with which parameters, read from YAML and turned into a plan."""

import json
import re
import unicodedata
from collections.abc import Mapping
from difflib import get_close_matches
from itertools import count, product
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from nml_kit.batch.status import RunStatus
from nml_kit.errors import InvalidInputError
from nml_kit.pages import notebook_parameters, read_source
from nml_kit.store import fingerprint, read_yaml

_LONGEST_NAME = 120  # file systems allow 255 bytes; a letter may take four, and lock files add to it
Grid = Mapping[str, list[Any]]
Model = TypeVar("Model", bound=BaseModel)


class Resources(BaseModel, frozen=True, extra="forbid"):
    """What a run needs of the worker that takes it."""

    CPU: float = Field(1, ge=0)
    GPU: float = Field(0, ge=0)
    memory: str | None = Field(None, pattern=r"^\d+(\.\d+)? ?[kMGT]?i?B$")


class SuiteEntry(BaseModel, frozen=True, extra="forbid"):
    """One notebook of a suite, its path relative to the suite file, and the parameters that differ from its own.

    `grid` gives several values to parameters: one run for each combination. Notebooks of one stage may run side by
    side, those of a later one after them. `profile` replaces the suite's.
    """

    notebook: str
    profile: str | None = None
    params: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    stage: int = 0
    resources: Resources = Resources()


class Suite(BaseModel, frozen=True, extra="forbid"):
    """Notebooks to run with one profile; `grid` holds for each that has the parameter and does not set it itself."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    profile: str
    grid: dict[str, list[Any]] = {}
    notebooks: tuple[SuiteEntry, ...] = Field(min_length=1)


def read_model(path: str | Path, model: type[Model], expected: str) -> Model:
    """Read a YAML file as `model`; raises DataFileError or InvalidInputError, which names the nearest field."""
    try:
        return model.model_validate(read_yaml(path))
    except ValidationError as error:
        known = _field_names(model.model_json_schema())
        problems = "; ".join(_problem(problem, known) for problem in error.errors())
        raise InvalidInputError(f"Expected {expected} in {path}, got: {problems}.") from error


def _field_names(schema: dict[str, Any]) -> list[str]:
    parts = (schema, *schema.get("$defs", {}).values())
    return [name for part in parts for name in part.get("properties", {})]


def _problem(problem: Any, known: list[str]) -> str:
    place = [str(part) for part in problem["loc"]] or ["file"]
    nearest = get_close_matches(place[-1], known, n=1) if problem["type"] == "extra_forbidden" else []
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"{'.'.join(place)}: {problem['msg']}{hint}"


def plan_suite(path: str | Path, *, runs: str | Path, profile: str | None = None) -> list[RunStatus]:
    """List the runs of a suite file by stage and in order: in `runs`/<suite>/<notebook>, a grid's points below that.

    Another `profile` than the suite's own goes to `runs`/<suite>-<profile>; all notebooks then have it. Paths in the
    suite, of notebooks and of profiles' files, may not leave the directory that holds the suites directory.
    Raises InvalidInputError or DataFileError.
    """
    path = Path(path)
    suite = read_model(path, Suite, "a suite (name, profile, notebooks: [{notebook, params, grid, stage, resources}])")
    chosen = profile or suite.profile
    group = suite.name if chosen == suite.profile else f"{suite.name}-{_safe(Path(chosen).stem)}"
    plan: list[RunStatus] = []
    taken: set[str] = set()
    for entry in suite.notebooks:
        notebook = _below(path, entry.notebook)
        name = _untaken(_safe(notebook.stem), taken)
        own_profile = profile or entry.profile or suite.profile
        if not profile and own_profile.endswith((".yaml", ".yml")):
            own_profile = str(_below(path, own_profile))
        run = RunStatus(
            name=name,
            notebook=notebook,
            run_dir=Path(runs) / group / name,
            state="waiting",
            stage=entry.stage,
            source=path.resolve(),
            resources=entry.resources.model_dump(),
            params={"profile": own_profile, **entry.params},
        )
        plan += _grid_points(run, _shared_grid(suite.grid, run) | entry.grid)
    return sorted(plan, key=lambda run: run.stage)


def _shared_grid(grid: Grid, run: RunStatus) -> dict[str, list[Any]]:
    """The part of a suite's grid that a notebook takes."""
    parameters = notebook_parameters(read_source(run.notebook)) if grid else {}
    return {key: values for key, values in grid.items() if key in parameters and key not in run.params}


def _below(suite: Path, name: str) -> Path:
    """The file that a suite names, relative to the suite file."""
    root = (suite.parent.parent if suite.parent.name == "suites" else suite.parent).resolve()
    try:
        file = (suite.parent / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a link to itself
        raise InvalidInputError(f"{suite}: expected the name of a file, got {name!r}: {error}.") from error
    if not file.is_relative_to(root):
        raise InvalidInputError(f"{suite}: expected files under {root}, got {name!r}, which leaves it.")
    return file


def plan_notebook(
    notebook: str | Path,
    *,
    runs: str | Path,
    profile: str | None = None,
    params: dict[str, Any] | None = None,
    grid: Grid | None = None,
) -> list[RunStatus]:
    """List the runs of a notebook: one in `runs`/<profile>/<notebook>, those of a grid below that.

    None takes the notebook's own profile. Raises InvalidInputError or DataFileError.
    """
    notebook, params = Path(notebook).resolve(), params or {}
    defaults = notebook_parameters(read_source(notebook))
    group = profile or params.get("profile") or defaults.get("profile") or "none"
    name = _safe(notebook.stem)
    run_dir = Path(runs) / _safe(Path(str(group)).stem) / name
    params = params | ({"profile": profile} if profile else {})
    run = RunStatus(name=name, notebook=notebook, run_dir=run_dir, state="waiting", source=notebook, params=params)
    return _grid_points(run, grid or {})


def _grid_points(base: RunStatus, grid: Grid) -> list[RunStatus]:
    """One run for each combination of the grid's values, the last parameter changing fastest."""
    for key, values in grid.items():
        if problem := _grid_problem(base, key, values):
            raise InvalidInputError(f"Grid of {base.notebook.name}: expected distinct values, {key!r} {problem}.")
    taken: set[str] = set()
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())] if grid else []
    runs = []
    for point in points:
        name = _untaken(_point_name(point), taken)
        place = {"run_dir": base.run_dir / name, "name": f"{base.name}/{name}"}
        runs.append(base.model_copy(update={"params": base.params | point, **place}))
    return runs or [base]


def _grid_problem(base: RunStatus, key: str, values: list[Any]) -> str:
    if key == "run_dir":
        return "is set for each run by nml"
    if key in base.params:
        return "is among the params too"
    if not values:
        return "needs at least one value"
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    return f"lists {twice[0]!r} twice" if twice else ""


def _point_name(point: dict[str, Any]) -> str:
    """A readable directory name, as "rate=0.1,task=icons"; with a hash where it does not tell all."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in point.items()}
    exact = ",".join(f"{key}={text}" for key, text in texts.items())
    pairs = [[re.sub(r"[^\w.+ -]", "_", part) for part in pair] for pair in texts.items()]
    name = _safe(",".join("=".join(pair) for pair in pairs))
    short = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return name if name == exact and short == name else f"{short}-{fingerprint(texts)[:8]}"


def _safe(text: str) -> str:
    """The text as a file name that stays in its directory."""
    return re.sub(r"^[. ]|[. ]$", "_", re.sub(r"[^\w.+ ,=-]", "_", unicodedata.normalize("NFC", text))) or "_"


def _untaken(name: str, taken: set[str]) -> str:
    """`name`, or `name`-2, …: no two are the same, not even where capitals do not count; it joins `taken`."""
    candidates = (name if number == 1 else f"{name}-{number}" for number in count(1))
    chosen = next(candidate for candidate in candidates if candidate.casefold() not in taken)
    taken.add(chosen.casefold())
    return chosen
