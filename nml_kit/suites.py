"""Suites: which notebooks to run with which parameters, read from YAML and turned into a plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.export import read_notebook
from nml_kit.parameters import notebook_parameters


class SuiteEntry(BaseModel, frozen=True, extra="forbid"):
    """One notebook of a suite, its path relative to the suite file, and the parameters that differ from its own.

    Notebooks of one stage may run side by side, those of a later one after them.
    """

    notebook: str
    params: dict[str, Any] = {}
    stage: int = 0


class Suite(BaseModel, frozen=True, extra="forbid"):
    """Notebooks to run with one profile."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    profile: str
    notebooks: tuple[SuiteEntry, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedRun:
    """One notebook to run: its path, profile (None: the notebook's own), parameters, run directory and stage."""

    notebook: Path
    profile: str | None
    params: dict[str, Any]
    run_dir: Path
    stage: int = 0


def load_suite(path: str | Path) -> Suite:
    """Read a suite from YAML; raises DataFileError or InvalidInputError if it is missing or not a suite."""
    try:
        return Suite.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"Expected a suite file at {path}, got: {error}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInputError(f"Expected YAML in {path}, got: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors())
        raise InvalidInputError(
            f"Expected a suite (name, profile, notebooks: [{{notebook, params}}]) in {path}, got: {problems}."
        ) from error


def plan_suite(path: str | Path, *, runs: str | Path, profile: str | None = None) -> list[PlannedRun]:
    """List the runs of a suite file, by stage and in order, with run directories under `runs`/<suite>/<notebook>.

    Another `profile` than the suite's own goes to `runs`/<suite>-<profile>. Notebook paths may not leave the
    directory that holds the suites directory. Raises InvalidInputError or DataFileError.
    """
    path = Path(path)
    suite = load_suite(path)
    chosen = profile or suite.profile
    group = suite.name if chosen == suite.profile else f"{suite.name}-{Path(chosen).stem}"
    root = (path.parent.parent if path.parent.name == "suites" else path.parent).resolve()
    plan: list[PlannedRun] = []
    for entry in suite.notebooks:
        notebook = (path.parent / entry.notebook).resolve()
        if not notebook.is_relative_to(root):
            raise InvalidInputError(
                f"{path}: expected notebooks under {root}, got {entry.notebook!r}, which leaves it."
            )
        repeats = sum(run.notebook == notebook for run in plan)
        name = notebook.stem + (f"-{repeats + 1}" if repeats else "")
        plan.append(PlannedRun(notebook, chosen, entry.params, Path(runs) / group / name, entry.stage))
    return sorted(plan, key=lambda run: run.stage)


def plan_notebook(
    notebook: str | Path, *, runs: str | Path, profile: str | None = None, params: dict[str, Any] | None = None
) -> list[PlannedRun]:
    """List the single run of a notebook, in `runs`/<profile>/<notebook>; None takes the notebook's own profile."""
    notebook = Path(notebook).resolve()
    defaults = notebook_parameters(read_notebook(notebook))
    group = profile or (params or {}).get("profile") or defaults.get("profile") or "none"
    return [PlannedRun(notebook, profile, params or {}, Path(runs) / Path(str(group)).stem / notebook.stem)]
