"""Suites: which notebooks to run with which parameters, read from YAML and turned into a plan."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from nml_kit.errors import InvalidInputError
from nml_kit.pages import notebook_parameters, read_source
from nml_kit.store import fingerprint, read_yaml

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
    side, those of a later one after them. `profile` is another one than the suite's, as for a costly notebook.
    """

    notebook: str
    profile: str | None = None
    params: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    stage: int = 0
    resources: Resources = Resources()


class Suite(BaseModel, frozen=True, extra="forbid"):
    """Notebooks to run with one profile, but for those that name their own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    profile: str
    notebooks: tuple[SuiteEntry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedRun:
    """One notebook to run: its path, profile (None: the notebook's own), parameters, run directory and stage.

    `name` is what people call it, as "02_noise/rate=0.1": its directory below that of the plan. `source` is the file
    that was asked for.
    """

    notebook: Path
    profile: str | None
    params: dict[str, Any]
    run_dir: Path
    stage: int = 0
    name: str = ""
    source: Path | None = None
    resources: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.run_dir.name)

    @property
    def plan_dir(self) -> Path:
        """The directory that all runs of the plan lie in."""
        return self.run_dir.parents[len(Path(self.name).parts) - 1]


def load_suite(path: str | Path) -> Suite:
    """Read a suite from YAML; raises DataFileError or InvalidInputError if it is missing or not a suite."""
    try:
        return Suite.model_validate(read_yaml(path))
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise InvalidInputError(
            f"Expected a suite (name, profile, notebooks: [{{notebook, params, grid, stage, resources}}]) in {path}, "
            f"got: {problems}."
        ) from error


def _problem(error: Any) -> str:
    place = ".".join(map(str, error["loc"])) or "file"
    known = [name for model in (Suite, SuiteEntry, Resources) for name in model.model_fields]
    nearest = get_close_matches(str(error["loc"][-1:] and error["loc"][-1]), known, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if error["type"] == "extra_forbidden" and nearest else ""
    return f"{place}: {error['msg']}{hint}"


def plan_suite(path: str | Path, *, runs: str | Path, profile: str | None = None) -> list[PlannedRun]:
    """List the runs of a suite file by stage and in order: in `runs`/<suite>/<notebook>, a grid's points below that.

    Another `profile` than the suite's own goes to `runs`/<suite>-<profile>; all notebooks then have it. Paths in the
    suite, of notebooks and of profiles' files, may not leave the directory that holds the suites directory.
    Raises InvalidInputError or DataFileError.
    """
    path = Path(path)
    suite = load_suite(path)
    chosen = profile or suite.profile
    group = suite.name if chosen == suite.profile else f"{suite.name}-{_safe(Path(chosen).stem)}"
    root = (path.parent.parent if path.parent.name == "suites" else path.parent).resolve()
    plan: list[PlannedRun] = []
    taken: set[str] = set()
    for entry in suite.notebooks:
        notebook = _below(root, path, entry.notebook)
        name = _untaken(_safe(notebook.stem), taken)
        own = profile or _profile_below(root, path, entry.profile or suite.profile)
        base = PlannedRun(notebook, own, entry.params, Path(runs) / group / name, entry.stage, name, path.resolve(),
                          entry.resources.model_dump())  # fmt: skip
        plan += _grid_points(base, entry.grid)
    return sorted(plan, key=lambda run: run.stage)


def _profile_below(root: Path, suite: Path, profile: str) -> str:
    """A profile's name as it is, or the path of its file."""
    return str(_below(root, suite, profile)) if profile.endswith((".yaml", ".yml")) else profile


def _below(root: Path, suite: Path, name: str) -> Path:
    """The file that a suite names, relative to the suite file; InvalidInputError if it leaves `root`."""
    try:
        found = (suite.parent / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a link to itself
        raise InvalidInputError(f"{suite}: expected the name of a file, got {name!r}: {error}.") from error
    if not found.is_relative_to(root):
        raise InvalidInputError(f"{suite}: expected files under {root}, got {name!r}, which leaves it.")
    return found


def plan_notebook(
    notebook: str | Path,
    *,
    runs: str | Path,
    profile: str | None = None,
    params: dict[str, Any] | None = None,
    grid: Grid | None = None,
) -> list[PlannedRun]:
    """List the runs of a notebook: one in `runs`/<profile>/<notebook>, those of a grid below that.

    None takes the notebook's own profile. Raises InvalidInputError or DataFileError.
    """
    notebook, params = Path(notebook).resolve(), params or {}
    defaults = notebook_parameters(read_source(notebook))
    group = profile or params.get("profile") or defaults.get("profile") or "none"
    name = _safe(notebook.stem)
    run_dir = Path(runs) / _safe(Path(str(group)).stem) / name
    return _grid_points(PlannedRun(notebook, profile, params, run_dir, 0, name, notebook), grid or {})


def _grid_points(base: PlannedRun, grid: Grid) -> list[PlannedRun]:
    """One run for each combination of the grid's values, the last parameter changing fastest."""
    if not grid:
        return [base]
    for key, values in grid.items():
        problem = (
            "is set for each run by nml" if key == "run_dir"
            else "is among the params too" if key in base.params or (key == "profile" and base.profile)
            else "needs at least one value" if not values
            else next((f"lists {value!r} twice" for i, value in enumerate(values) if value in values[:i]), "")
        )  # fmt: skip
        if problem:
            raise InvalidInputError(f"Grid of {base.notebook.name}: expected distinct values, {key!r} {problem}.")
    taken: set[str] = set()
    points = []
    for chosen in product(*grid.values()):
        point = dict(zip(grid, chosen, strict=True))
        name = _untaken(_point_name(point), taken)
        points.append(
            PlannedRun(base.notebook, base.profile, base.params | point, base.run_dir / name, base.stage,
                       f"{base.name}/{name}", base.source, base.resources)
        )  # fmt: skip
    return points


def _point_name(point: dict[str, Any]) -> str:
    """A readable directory name, as "rate=0.1,task=icons"; with a hash where it does not tell all."""
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in point.items()}
    told = ",".join(f"{key}={text}" for key, text in texts.items())
    name = _safe(",".join(f"{_clean(key)}={_clean(text)}" for key, text in texts.items()))
    short = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    return name if name == told and short == name else f"{short}-{fingerprint(texts)[:8]}"


def _safe(text: str) -> str:
    """The text as a file name that stays in its directory."""
    return re.sub(r"^[. ]|[. ]$", "_", re.sub(r"[^\w.+ ,=-]", "_", unicodedata.normalize("NFC", text))) or "_"


def _clean(text: str) -> str:
    return re.sub(r"[^\w.+ -]", "_", text)


def _untaken(name: str, taken: set[str]) -> str:
    """`name`, or `name`-2, …: no two are the same, not even where capitals do not count; it joins `taken`."""
    candidates: Iterable[str] = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    chosen = next(candidate for candidate in candidates if candidate.casefold() not in taken)
    taken.add(chosen.casefold())
    return chosen
