"""The command `nml`: it parses arguments and prints what the package returns."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from nml_kit import __version__
from nml_kit.cli.data import datasets, noise_app, store_app
from nml_kit.errors import InvalidInputError, NMLError

# Imports are inside the commands: `nml --help` answers at once.


class ErrorsAsMessages(TyperGroup):
    """Bad input exits 2, any other error of ours 1, each with its message and no traceback; Ctrl-C exits 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        except NMLError as error:
            typer.secho(f"Error: {error}", err=True, fg="red")
            raise typer.Exit(2 if isinstance(error, InvalidInputError) else 1) from error


app = typer.Typer(
    help="Noisy Model Learning: what label noise in pre-training does to features, and what repairs them.",
    cls=ErrorsAsMessages,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(datasets)
app.add_typer(noise_app, name="noise")
app.add_typer(store_app, name="store")

Runs = Annotated[Path, typer.Argument(help="A directory of runs.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Directory for the results.")]
RUNS = Path("runs")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nml_kit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options for all commands."""


Param = typer.Option("--param", "-p", metavar="KEY=VALUE", help="A notebook's parameter, in YAML.")
Grid = typer.Option(metavar="KEY=A,B", help="Several values, in YAML: one run for each combination.")
Only = typer.Option(metavar="PATTERN", help="Only runs whose name fits, as '02_*' or '*seed=1*'.")
Scheduler = typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
Cluster = typer.Option(metavar="FILE", help="Run on a Dask cluster made for this, as a YAML file says.")
Retries = typer.Option(min=0, help="How often a run whose worker was lost is tried again; default: 3.")


@app.command()
def run(
    target: Annotated[Path, typer.Argument(help="A suite (.yaml) or a notebook (.ipynb).")],
    profile: Annotated[str | None, typer.Option(help="Sizes, data and seeds: a profile's name or its file.")] = None,
    param: Annotated[list[str] | None, Param] = None,
    grid: Annotated[list[str] | None, Grid] = None,
    runs: RunsOption = RUNS,
    jobs: Annotated[int | None, typer.Option(help="Notebooks side by side in a stage; default: one per core.")] = None,
    only: Annotated[str | None, Only] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="End a run that takes longer.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is done.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Start later stages after a failure too.")] = False,
    scheduler: Annotated[str | None, Scheduler] = None,
    cluster: Annotated[Path | None, Cluster] = None,
    retries: Annotated[int | None, Retries] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and start nothing.")] = False,
) -> None:
    """Run what is not done yet; exit code 0 done, 1 a cell failed, 2 bad input, 3 part failed, 130, 138."""
    from nml_kit import batch
    from nml_kit.cli.console import live_progress, show_plan

    plan = _plan_of(target, runs, profile, param or [], grid or [])
    elsewhere = _elsewhere(scheduler, cluster, retries, jobs)
    workers = jobs if jobs is not None else os.cpu_count() or 1
    if dry_run:
        show_plan(batch.look_ahead(plan, only=only, force=force), workers)
        raise typer.Exit
    with live_progress() as report:
        results = batch.run_suite(
            plan,
            jobs=workers,
            only=only,
            force=force,
            keep_going=keep_going,
            timeout=timeout,
            report=report,
            cluster=elsewhere,
            retries=retries,
            progress=sys.stderr.isatty(),
        )
    _tell_results(results)
    typer.echo(f"To see all runs on one page: {shlex.join(['nml', 'report', str(runs)])}")
    if code := batch.suite_exit_code(results):
        again = shlex.join(["nml", *(word for word in sys.argv[1:] if word != "--force")])
        typer.echo(f"To continue (what is done is kept): {again}", err=True)
    raise typer.Exit(code)


def _plan_of(target: Path, runs: Path, profile: str | None, param: list[str], grid: list[str]) -> list[Any]:
    """The runs of a suite, or of a notebook with its parameters and grid."""
    from nml_kit.batch import plan_notebook, plan_suite

    if target.suffix not in (".yaml", ".yml"):
        params = dict(_key_and_value("-p", text) for text in param)
        points = dict(_key_and_value("--grid", text, several=True) for text in grid)
        if len(points) < len(grid):
            raise InvalidInputError("Expected --grid once for each parameter: --grid KEY=A,B.")
        return plan_notebook(target, runs=runs, profile=profile, params=params, grid=points)
    if param or grid:
        word = "-p" if param else "--grid"
        raise InvalidInputError(f"Expected {word} with a notebook, got a suite: write it in the suite file.")
    return plan_suite(target, runs=runs, profile=profile)


def _key_and_value(option: str, text: str, *, several: bool = False) -> tuple[str, Any]:
    from nml_kit.store import parse_yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InvalidInputError(f"Expected {option} KEY=VALUE, got {text!r}.")
    if several:
        return key, parse_yaml(f"[{value}]", f"{option} {key}=A,B")
    return key, parse_yaml(value, f"{option} {key}=VALUE") if value else ""


def _elsewhere(scheduler: str | None, cluster: Path | None, retries: int | None, jobs: int | None) -> Any:
    """Where runs are executed if not here: a scheduler's address, what a cluster file says, or None."""
    if retries is not None and not (scheduler or cluster):
        raise InvalidInputError("Expected --retries with --scheduler or --cluster: here no worker can be lost.")
    if scheduler and cluster:
        raise InvalidInputError("Expected --scheduler or --cluster, got both.")
    if jobs is not None and (scheduler or cluster):
        raise InvalidInputError("Expected no --jobs: the threads of the cluster's workers are what runs side by side.")
    if cluster:
        from nml_kit.batch import read_cluster_file

        return read_cluster_file(cluster)
    return scheduler


@app.command()
def audit(
    train: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="FEATURES LABELS", help="Files (N, D), (N,).")
    ] = None,
    test: Annotated[tuple[Path, Path] | None, typer.Option(metavar="FEATURES LABELS", help="Of test samples.")] = None,
    domains: Annotated[Path | None, typer.Option(help="File (N,) of the domains of train samples.")] = None,
    test_domains: Annotated[Path | None, typer.Option(help="File (N,) of those of test samples.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Or a backbone, as packaged:efficientnet-lite0,")] = None,
    data: Annotated[str | None, typer.Option(help="and data: a name of `nml datasets`, or a path.")] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="Domains to hold out; default: each.")] = None,
    runs: RunsOption = RUNS,
) -> None:
    """Make a report card of frozen features: their spectrum, three tuned heads, and whether to bother."""
    from nml_kit.batch import plan_notebook, run_suite, suite_exit_code
    from nml_kit.cli.console import live_progress
    from nml_kit.study import notebooks_dir

    if (train is None) == (backbone is None or data is None) or (train is not None and (backbone or data)):
        raise InvalidInputError("Expected --train FEATURES LABELS, or --backbone NAME with --data TASK.")
    names = ("train_features", "train_labels", "test_features", "test_labels", "train_domains", "test_domains")
    files = (*(train or (None, None)), *(test or (None, None)), domains, test_domains)
    params: dict[str, Any] = {name: str(path.resolve()) for name, path in zip(names, files, strict=True) if path}
    params |= {"backbone": backbone, "data": data} if backbone else {}
    params |= {"held_out": held_out} if held_out else {}
    plan = plan_notebook(notebooks_dir() / "audit.ipynb", runs=runs, params=params)
    with live_progress() as report:  # always anew: files change under their names, and heads are stored
        results = run_suite(plan, force=True, report=report)
    _tell_results(results)
    raise typer.Exit(suite_exit_code(results))


def _tell_results(results: Iterable[Any]) -> None:
    """A line for each run, with its page, and one for its error."""
    for result in results:
        page = result.run_dir / ("notebook.html" if result.exit_code == 0 else "notebook.ipynb")
        typer.echo(f"{result.state}: {page}" if page.exists() else f"{result.state}: {result.name}")
        if result.error:
            typer.secho(f"  {result.notebook}, {result.error}", err=True, fg="red")


@app.command()
def status(
    runs: Runs = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="A list for machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second until nothing runs.")] = False,
) -> None:
    """Show what is done, runs, waits or failed."""
    from nml_kit.batch import read_statuses
    from nml_kit.cli.console import show_statuses, watch_statuses

    if as_json:
        typer.echo(json.dumps([status.record() for status in read_statuses(runs)], indent=1))
    elif watch:
        watch_statuses(runs)
    else:
        show_statuses(runs)


@app.command()
def summary(runs: Runs = RUNS) -> None:
    """Print the results of runs as a table and where to look at them."""
    from nml_kit.batch import summary_of_runs
    from nml_kit.cli.console import show

    table = summary_of_runs(runs)
    title = "Accuracy: a fraction with its 95 % interval; SVE and LSVR in nats; means over tasks"
    show(title, table.columns.tolist(), table.to_numpy())
    for page in sorted(runs.rglob("notebook.html")):
        typer.echo(f"Open {page.resolve().as_uri()}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="An executed notebook, or the directory of its run.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: beside the notebook, with .html.")] = None,
    images: Annotated[
        Literal["png", "svg", "pdf"] | None, typer.Option(help="Write each figure beside the notebook as well.")
    ] = None,
) -> None:
    """Write an executed notebook as one HTML file whose figures work without a kernel or a network."""
    from nml_kit.pages import export_html, save_figures

    notebook = source / "notebook.ipynb" if source.is_dir() else source
    page = export_html(notebook, out or notebook.with_suffix(".html"))
    for path in save_figures(notebook, images) if images else ():
        typer.echo(f"Wrote {path}")
    typer.echo(f"Open {page.resolve().as_uri()}")


@app.command()
def report(
    runs: Runs = RUNS,
    out: Annotated[Path | None, typer.Option(help="Directory for the site; default: RUNS/report.")] = None,
) -> None:
    """Make a site of all runs and their notebooks that opens in a browser without a network."""
    from nml_kit.batch import write_report

    typer.echo(f"Open {write_report(runs, out).as_uri()}")


@app.command()
def doctor() -> None:
    """Check everything the notebooks need; exit code 1 if something required is missing."""
    from nml_kit.cli.console import show
    from nml_kit.cli.doctor import run_checks

    checks, rows = run_checks(), []
    for check in checks:
        state = "ok" if check.ok else "MISSING" if check.required else "optional"
        rows.append((state, check.name, check.detail, "" if check.ok else check.remedy))
    title = f"nml_kit {__version__}, Python {platform.python_version()} at {sys.executable}"
    show(title, ["", "check", "found", "what to do"], rows)
    raise typer.Exit(int(any(check.required and not check.ok for check in checks)))
