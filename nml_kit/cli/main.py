"""The command `nml`: it parses arguments and prints what the package returns."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from nml_kit import __version__
from nml_kit.cli.data import datasets, noise_app, store_app
from nml_kit.errors import DataFileError, InvalidInputError, NMLError

if TYPE_CHECKING:  # imports are inside the commands: `nml --help` answers at once
    from nml_kit.batch import PlanRow, RunStatus


class ErrorsAsMessages(TyperGroup):
    """Bad input, also in files, exits 2, any other error of ours 1, with its message alone; Ctrl-C exits 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(130) from error
        except NMLError as error:
            typer.secho(f"Error: {error}", err=True, fg="red")
            raise typer.Exit(2 if isinstance(error, InvalidInputError | DataFileError) else 1) from error


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
    # As in `batch/kernel.py`: nbformat imports jsonschema too.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


Param = typer.Option("--param", "-p", metavar="KEY=VALUE", help="A notebook's parameter, in YAML.")
Grid = typer.Option(metavar="KEY=A,B", help="Several values, in YAML: one run for each combination.")
Only = typer.Option(metavar="PATTERN", help="Only runs whose name fits, as '02_*' or '*seed=1*'.")
Jobs = typer.Option(min=1, help="Notebooks side by side in a stage; default: one per core.")
Scheduler = typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
Files = typer.Option(metavar="FEATURES LABELS", help="Files (N, D) and (N,); those of --test are of test samples.")


@app.command()
def run(
    target: Annotated[Path, typer.Argument(help="A suite (.yaml) or a notebook (.ipynb).")],
    profile: Annotated[str | None, typer.Option(help="Sizes, data and seeds: a profile's name or its file.")] = None,
    param: Annotated[list[str] | None, Param] = None,
    grid: Annotated[list[str] | None, Grid] = None,
    runs: RunsOption = RUNS,
    jobs: Annotated[int | None, Jobs] = None,
    only: Annotated[str | None, Only] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="End a run that takes longer.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is done.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Start later stages after a failure too.")] = False,
    scheduler: Annotated[str | None, Scheduler] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and start nothing.")] = False,
) -> None:
    """Run what is not done yet; exit code 0 done, 1 a cell failed, 2 bad input, 3 part failed, 130, 138."""
    from nml_kit.batch import look_ahead, plan_notebook, plan_suite

    params, points = _pairs("-p", param or []), _pairs("--grid", grid or [])
    if target.suffix not in (".yaml", ".yml"):
        plan = plan_notebook(target, runs=runs, profile=profile, params=params, grid=points)
    elif params or points:
        word = "-p" if params else "--grid"
        raise InvalidInputError(f"Expected {word} with a notebook, got a suite: write it in the suite file.")
    else:
        plan = plan_suite(target, runs=runs, profile=profile)
    if jobs is not None and scheduler:
        raise InvalidInputError(
            "Expected no --jobs: the threads of the scheduler's workers are what runs side by side."
        )
    jobs = jobs if jobs is not None else os.cpu_count() or 1
    if dry_run:
        _show_plan(look_ahead(plan, only=only, force=force), jobs)
        return
    choices: dict[str, Any] = {"jobs": jobs, "only": only, "timeout": timeout, "force": force, "scheduler": scheduler}
    code = _run(plan, keep_going=keep_going, progress=sys.stderr.isatty(), **choices)
    typer.echo(f"To see all runs on one page: {shlex.join(['nml', 'report', str(runs)])}")
    if code:
        again = shlex.join(["nml", *(word for word in sys.argv[1:] if word != "--force")])
        typer.echo(f"To continue (what is done is kept): {again}", err=True)
    raise typer.Exit(code)


def _pairs(option: str, texts: list[str]) -> dict[str, Any]:
    """What the words of `-p KEY=VALUE` or `--grid KEY=A,B` hold, read as YAML."""
    from nml_kit.store import parse_yaml

    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInputError(f"Expected {option} KEY=VALUE, got {text!r}.")
        if option == "--grid" and key in pairs:
            raise InvalidInputError("Expected --grid once for each parameter: --grid KEY=A,B.")
        value = f"[{value}]" if option == "--grid" else value
        pairs[key] = parse_yaml(value, f"{option} {key}=VALUE") if value else ""
    return pairs


def _show_plan(rows: list["PlanRow"], jobs: int) -> None:
    """Print what would be done, and about how long it takes: a run that was never timed counts as the mean."""
    from nml_kit.cli.console import show

    cells = [(row.run.name, row.action, "?" if row.seconds is None else f"{row.seconds:.0f}") for row in rows]
    show("What nml run would do", ["run", "state", "seconds"], cells)
    todo = [row.seconds for row in rows if row.action != "hit"]
    timed = [seconds for seconds in todo if seconds is not None]
    total = max([*timed, sum(timed) / max(len(timed), 1) * len(todo) / jobs])
    about = f"about {total:.0f} s" if total < 100 else f"about {total / 60:.0f} min"
    if todo and not timed:
        about = "unknown time"
    elif len(timed) < len(todo):
        about += f" ({len(todo) - len(timed)} never timed, taken as the mean)"
    typer.echo(f"{len(todo)} to run, {about} with --jobs {jobs}")


def _run(plan: list["RunStatus"], **options: Any) -> int:
    """Run a plan; print a line for each run, with its page, and one for its error; return the exit code."""
    from nml_kit.batch import run_suite, suite_exit_code

    results = run_suite(plan, report=lambda text: typer.echo(f"nml: {text}", err=True), **options)
    for result in results:
        page = result.run_dir / ("notebook.html" if result.exit_code == 0 else "notebook.ipynb")
        typer.echo(f"{result.state}: {page if page.exists() else result.name}")
        if result.error:
            typer.secho(f"  {result.notebook}, {result.error}", err=True, fg="red")
    return suite_exit_code(results)


@app.command()
def audit(
    train: Annotated[tuple[Path, Path] | None, Files] = None,
    test: Annotated[tuple[Path, Path] | None, Files] = None,
    domains: Annotated[Path | None, typer.Option(help="File (N,) of the domains of train samples.")] = None,
    test_domains: Annotated[Path | None, typer.Option(help="File (N,) of those of test samples.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Or a backbone, as packaged:efficientnet-lite0,")] = None,
    data: Annotated[str | None, typer.Option(help="and data: a name of `nml datasets`, or a path.")] = None,
    held_out: Annotated[list[str] | None, typer.Option(help="Domains to hold out; default: each.")] = None,
    runs: RunsOption = RUNS,
) -> None:
    """Make a report card of frozen features: their spectrum, three tuned heads, and whether to bother."""
    from nml_kit.batch import plan_notebook
    from nml_kit.study import notebooks_dir

    if (train is None) == (backbone is None or data is None) or (train is not None and (backbone or data)):
        raise InvalidInputError("Expected --train FEATURES LABELS, or --backbone NAME with --data TASK.")
    names = ("train_features", "train_labels", "test_features", "test_labels", "train_domains", "test_domains")
    files = (*(train or (None, None)), *(test or (None, None)), domains, test_domains)
    params: dict[str, Any] = {name: str(path) for name, path in zip(names, files, strict=True) if path}
    params |= {"backbone": backbone, "data": data} if backbone else {}
    params |= {"held_out": held_out} if held_out else {}
    _require_inputs(files, backbone or "", data or "", held_out or [])
    plan = plan_notebook(notebooks_dir() / "audit.ipynb", runs=runs, params=params)
    raise typer.Exit(_run(plan, force=True))  # always anew: files change under their names, and heads are stored


def _require_inputs(files: Sequence[Path | None], backbone: str, data: str, held_out: Sequence[str]) -> None:
    """Load what an audit starts from as its notebook does, so that what is wrong is told before a kernel starts."""
    if backbone:
        from nml_kit.data import load_task

        domains = load_task(data).domains
        from nml_kit.backbones import load_backbone  # with torch: later than a misspelt name of data

        load_backbone(backbone)
    else:
        from nml_kit.audit import features_from_files

        *arrays, at, at_test = (path or "" for path in files)
        domains = features_from_files(*arrays, domains=at, test_domains=at_test).domains
    if held_out:
        from nml_kit.audit import require_domains

        require_domains(domains, held_out)


@app.command()
def status(
    runs: Runs = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="A list for machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second until nothing runs.")] = False,
) -> None:
    """Show what is done, runs, waits or failed."""
    from nml_kit.batch import read_statuses
    from nml_kit.cli.console import show_statuses

    if as_json:
        typer.echo(json.dumps([status.record() for status in read_statuses(runs)], indent=1))
    else:
        show_statuses(runs, watch=watch)


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
