"""What commands share: errors and tables, and what options of `nml run` and `nml audit` ask for."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from nml_kit.errors import InvalidInputError, MissingDependencyError, NMLError


def elsewhere_of(scheduler: str | None, cluster: Path | None, retries: int | None, jobs: int | None) -> Any:
    """Where runs are executed if not here: None, or what run_suite takes."""
    if scheduler is None and cluster is None:
        if retries is not None:
            raise InvalidInputError("Expected --retries with --scheduler or --cluster: here no worker can be lost.")
        return None
    if scheduler is not None and cluster is not None:
        raise InvalidInputError("Expected --scheduler or --cluster, got both.")
    if jobs is not None:
        raise InvalidInputError("Expected no --jobs: the threads of the cluster's workers are what runs side by side.")
    try:
        if cluster is not None:
            from nml_kit.batch import on_cluster_file

            return on_cluster_file(cluster, retries=retries)
        from nml_kit.batch import on_scheduler
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("dask", "distributed"):
            raise
        raise MissingDependencyError(f"{error.name} is needed for this: pip install 'nml_kit[cluster]'.") from error
    return on_scheduler(str(scheduler), retries=retries)


def plan_of(target: Path, runs: Path, profile: str | None, param: list[str], grid: list[str]) -> list[Any]:
    """The runs of a suite, or of a notebook with its parameters and grid; InvalidInputError for options that clash."""
    from nml_kit.batch import suites

    if target.suffix not in (".yaml", ".yml"):
        params = dict(_key_and_value("-p", one) for one in param)
        points = dict(_key_and_value("--grid", one, several=True) for one in grid)
        if len(points) < len(grid):
            raise InvalidInputError("Expected --grid once for each parameter: --grid KEY=A,B.")
        return suites.plan_notebook(target, runs=runs, profile=profile, params=params, grid=points)
    if param or grid:
        word = "-p" if param else "--grid"
        raise InvalidInputError(f"Expected {word} with a notebook, got a suite: write it in the suite file.")
    return list(suites.plan_suite(target, runs=runs, profile=profile))


def _key_and_value(option: str, text: str, *, several: bool = False) -> tuple[str, Any]:
    from nml_kit.store import parse_yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInputError(f"Expected {option} KEY=VALUE, got {text!r}.")
    if several:
        return key, parse_yaml(f"[{value}]", f"{option} {key}=A,B")
    return key, parse_yaml(value, f"{option} {key}=VALUE") if value else ""


def audit_plan(
    runs: Path,
    *,
    train: tuple[Path, Path] | None,
    test: tuple[Path, Path] | None,
    domains: Path | None,
    test_domains: Path | None,
    backbone: str | None,
    data: str | None,
    held_out: list[str],
) -> list[Any]:
    """The run of `audit.ipynb` on features in files, or on a backbone's; InvalidInputError for both or neither."""
    from nml_kit.batch import suites
    from nml_kit.study import notebooks_dir

    if (train is None) == (backbone is None or data is None) or (train is not None and (backbone or data)):
        raise InvalidInputError("Expected --train FEATURES LABELS, or --backbone NAME with --data TASK.")
    names = ("train_features", "train_labels", "test_features", "test_labels", "train_domains", "test_domains")
    files = (*(train or (None, None)), *(test or (None, None)), domains, test_domains)
    params: dict[str, Any] = {name: str(path.resolve()) for name, path in zip(names, files, strict=True) if path}
    params |= {"backbone": backbone, "data": data} if backbone else {}
    params |= {"held_out": held_out} if held_out else {}
    return list(suites.plan_notebook(notebooks_dir() / "audit.ipynb", runs=runs, params=params))


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Bad input exits 2, any other error of ours 1, each with its message and no traceback; Ctrl-C exits 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    except NMLError as error:
        typer.secho(f"Error: {error}", err=True, fg="red")
        raise typer.Exit(2 if isinstance(error, InvalidInputError) else 1) from error


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with a title."""
    from nml_kit.cli.console import show

    show(title, columns, rows)
