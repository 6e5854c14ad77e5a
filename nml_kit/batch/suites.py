"""Suites: which notebooks to run with which parameters, read from YAML and turned into a plan."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from itertools import count, product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from nml_kit import __version__
from nml_kit.batch.places import with_absolute_paths
from nml_kit.batch.status import RunStatus
from nml_kit.errors import InvalidInputError
from nml_kit.pages import check_parameters, notebook_choices, notebook_fractions, notebook_parameters, read_source
from nml_kit.store import fingerprint, read_yaml
from nml_kit.study import load_profile

_LONGEST_NAME = 120  # file systems allow 255 bytes; a letter may take four, and lock files add to it
Grid = Mapping[str, list[Any]]


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


def _read_suite(path: Path) -> Suite:
    """Read a suite file; an unknown field is told with the nearest one."""
    try:
        return Suite.model_validate(read_yaml(path))
    except ValidationError as error:
        known, problems = [*Suite.model_fields, *SuiteEntry.model_fields, *Resources.model_fields], []
        for problem in error.errors():
            place = ".".join(map(str, problem["loc"])) or "file"
            nearest = get_close_matches(place.rpartition(".")[2], known, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest and problem["type"] == "extra_forbidden" else ""
            problems.append(f"{place}: {problem['msg']}{hint}")
        fields = "(name, profile, notebooks: [{notebook, params, grid, stage, resources}])"
        raise InvalidInputError(f"Expected a suite {fields} in {path}, got: {'; '.join(problems)}.") from error


def plan_suite(path: str | Path, *, runs: str | Path, profile: str | None = None) -> list[RunStatus]:
    """List the runs of a suite file by stage and in order: in `runs`/<suite>/<notebook>, a grid's points below that.

    Another `profile` than the suite's own goes to `runs`/<suite>-<profile>; all notebooks then have it. Paths in the
    suite, of notebooks and of profiles' files, may not leave the directory that holds the suites directory.
    Raises InvalidInputError or DataFileError.
    """
    path = Path(path)
    suite = _read_suite(path)
    chosen = profile or suite.profile
    group = suite.name if chosen == suite.profile else f"{suite.name}-{_safe(Path(chosen).stem)}"
    plan: list[RunStatus] = []
    taken: set[str] = set()
    for entry in suite.notebooks:
        notebook = _below(path, entry.notebook)
        if "profile" in entry.params:
            raise InvalidInputError(f"{path}: expected `profile` beside `notebook: {entry.notebook}`, not in `params`.")
        own_profile = profile or entry.profile or suite.profile
        if not profile and own_profile.endswith((".yaml", ".yml")):
            own_profile = str(_below(path, own_profile))
        params = {"profile": own_profile, **entry.params}
        known = notebook_parameters(read_source(notebook)) if suite.grid else {}
        shared = {key: values for key, values in suite.grid.items() if key in known and key not in params}
        name = _untaken(_safe(notebook.stem), taken)
        run = _waiting(notebook, Path(runs) / group / name, path.resolve(), params)
        run = run.model_copy(update={"stage": entry.stage, "resources": entry.resources.model_dump()})
        plan += _grid_points(run, shared | entry.grid)
    return sorted(plan, key=lambda run: run.stage)


def _waiting(notebook: Path, run_dir: Path, source: Path, params: dict[str, Any]) -> RunStatus:
    if "run_dir" in params:
        raise InvalidInputError(
            f"{notebook.name}: expected no parameter 'run_dir', which nml sets for each run; --runs says where all go."
        )
    place = {"name": run_dir.name, "notebook": notebook, "run_dir": run_dir, "source": source}
    return RunStatus(state="waiting", params=params, **place)


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
    notebook = Path(notebook).resolve()
    own = {"profile": profile} if profile else {}
    params = params or {}
    if own.keys() & params:
        raise InvalidInputError(f"Expected one profile, got {profile!r} and the parameter {params['profile']!r}.")
    params = params | own
    group = params.get("profile") or notebook_parameters(read_source(notebook)).get("profile") or "none"
    run_dir = Path(runs) / _safe(Path(str(group)).stem) / _safe(notebook.stem)
    return _grid_points(_waiting(notebook, run_dir, notebook, params), grid or {})


def _grid_points(base: RunStatus, grid: Grid) -> list[RunStatus]:
    """One run for each combination of the grid's values, the last parameter changing fastest."""
    for key, values in grid.items():
        if problem := _grid_problem(base, key, values):
            raise InvalidInputError(f"Grid of {base.notebook.name}: expected distinct values, {key!r} {problem}.")
    if not grid:
        return [base]
    taken: set[str] = set()
    runs = []
    for combination in product(*grid.values()):
        point = dict(zip(grid, combination, strict=True))
        name = _untaken(_point_name(point), taken)
        place = {"run_dir": base.run_dir / name, "name": f"{base.name}/{name}"}
        runs.append(base.model_copy(update={"params": base.params | point, **place}))
    return runs


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


def checked(plan: Sequence[RunStatus]) -> list[RunStatus]:
    """Check notebooks' parameters and profiles, in a moment: nothing heavy is loaded and no kernel starts.

    The runs then hold their ids and all that is injected; a notebook's `interactive` becomes False: a run shows
    figures, not widgets. An id hashes the cells' sources and tags, all parameters but run_dir, the profile's content
    and the version of nml_kit; not the code of nml_kit itself. Raises InvalidInputError or DataFileError.
    """
    source, profile = functools.cache(read_source), functools.cache(load_profile)
    if len({run.run_dir for run in plan}) < len(plan):
        raise InvalidInputError("Expected a directory for each run, got two runs in one: name them differently.")
    return [_checked(run, source(run.notebook), profile) for run in plan]


def _checked(run: RunStatus, source: dict[str, Any], profile: Callable[[str], Any]) -> RunStatus:
    defaults, run_dir = notebook_parameters(source), run.run_dir.resolve()
    values = check_parameters(run.params, defaults, notebook_choices(source), notebook_fractions(source))
    values, content = with_absolute_paths(values), None
    if "profile" in defaults:
        name = values.get("profile", defaults["profile"])
        content = profile(name).model_dump(mode="json")
        if Path(name).suffix:  # a file: the kernel works in another directory
            values["profile"] = str(Path(name).resolve())
    if values.get("interactive"):
        raise InvalidInputError(f"{run.name}: widgets need a kernel that stays; open the notebook in JupyterLab.")
    values |= {"interactive": False} if "interactive" in defaults else {}
    decisive = {name: repr(value) for name, value in (defaults | values).items() if name not in ("run_dir", "profile")}
    cells = [[cell["cell_type"], cell["source"], cell["metadata"]["tags"]] for cell in source["cells"]]
    key = {"cells": cells, "values": decisive, "profile": content, "nml_kit": __version__}
    if "run_dir" in defaults:
        values.setdefault("run_dir", str(run_dir))
    places = {"notebook": run.notebook.resolve(), "run_dir": run_dir, "profile": content and content["name"]}
    return run.model_copy(update={"id": fingerprint(key), "params": values, **places})
