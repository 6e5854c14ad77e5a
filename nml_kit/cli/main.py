"""The command `nml`: it parses arguments and prints what the package returns."""

import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nml_kit import __version__
from nml_kit.cli.data import datasets, noise_app, store_app
from nml_kit.cli.options import errors_as_messages, show_table

app = typer.Typer(
    help="Noisy Model Learning: what label noise in pre-training does to features, and what repairs them.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
app.command()(datasets)
app.add_typer(noise_app, name="noise")
app.add_typer(store_app, name="store")

ImageFormat = Literal["png", "svg", "pdf"]

# Imports are inside the commands: `nml --help` answers at once.


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


@app.command()
def run(
    target: Annotated[Path, typer.Argument(help="A suite (.yaml) or a notebook (.ipynb).")],
    profile: Annotated[str | None, typer.Option(help="Sizes, data and seeds: a profile's name or its file.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="KEY=VALUE", help="A notebook's parameter, in YAML.")
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="Several values, in YAML: one run for each combination.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Directory for the results.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(help="Notebooks side by side within a stage; default: one per core.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only runs whose name fits, as '02_*' or '*seed=1*'.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="End a run that takes longer.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Run also what is done.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Start later stages after a failure too.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run on a Dask cluster made for this, as a YAML file says.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="How often a run whose worker was lost is tried again; default: 3.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and start nothing.")] = False,
) -> None:
    """Run what is not done yet; exit code 0 done, 1 a cell failed, 2 bad input, 3 part failed, 130, 138."""
    workers = jobs if jobs is not None else os.cpu_count() or 1
    with errors_as_messages():
        from nml_kit.batch import batch
        from nml_kit.cli import console as _console
        from nml_kit.cli.options import elsewhere_of, plan_of

        plan = plan_of(target, runs, profile, param or [], grid or [])
        elsewhere = elsewhere_of(scheduler, cluster, retries, jobs)
        if dry_run:
            _console.show_plan(batch.look_ahead(plan, only=only, force=force), workers)
            raise typer.Exit
        with _console.live_progress() as report:
            results = batch.run_suite(
                plan, jobs=workers, only=only, force=force, keep_going=keep_going, timeout=timeout, report=report,
                progress=sys.stderr if sys.stderr.isatty() else None, elsewhere=elsewhere,
            )  # fmt: skip
        code = batch.suite_exit_code(results)
    _tell_results(results)
    typer.echo(f"To see all runs on one page: {shlex.join(['nml', 'report', str(runs)])}")
    if code:
        options = {"--profile": profile, "--only": only, "--timeout": timeout, "--jobs": jobs,
                   "--scheduler": scheduler, "--cluster": cluster, "--retries": retries}  # fmt: skip
        again = ["nml", "run", str(target)]
        again += [str(word) for name, value in options.items() if value is not None for word in (name, value)]
        again += [word for one in param or [] for word in ("-p", one)]
        again += [word for one in grid or [] for word in ("--grid", one)]
        again += ["--keep-going"] * keep_going + ["--runs", str(runs)]
        typer.echo(f"To continue (what is done is kept): {shlex.join(again)}", err=True)
    raise typer.Exit(code)


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
    runs: Annotated[Path, typer.Option(help="Directory for the results.")] = Path("runs"),
) -> None:
    """Make a report card of frozen features: their spectrum, three tuned heads, and whether to bother."""
    with errors_as_messages():
        from nml_kit.batch import batch
        from nml_kit.cli import console as _console
        from nml_kit.cli.options import audit_plan

        plan = audit_plan(
            runs, train=train, test=test, domains=domains, test_domains=test_domains, backbone=backbone, data=data,
            held_out=held_out or [],
        )  # fmt: skip
        with _console.live_progress() as report:  # always anew: files change under their names, and heads are stored
            results = batch.run_suite(plan, force=True, report=report)
    _tell_results(results)
    raise typer.Exit(batch.suite_exit_code(results))


def _tell_results(results: Iterable[Any]) -> None:
    """A line for each run, with its page, and one for its error."""
    for result in results:
        page = result.run_dir / ("notebook.html" if result.exit_code == 0 else "notebook.ipynb")
        typer.echo(f"{result.state}: {page}" if page.exists() else f"{result.state}: {result.name}")
        if result.error:
            typer.secho(f"  {result.notebook}, {result.error}", err=True, fg="red")


@app.command()
def status(
    runs: Annotated[Path, typer.Argument(help="A directory of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="A list for machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second until nothing runs.")] = False,
) -> None:
    """Show what is done, runs, waits or failed."""
    with errors_as_messages():
        from nml_kit.batch import read_statuses
        from nml_kit.cli import console as _console

        if as_json:
            typer.echo(json.dumps([one.record() for one in read_statuses(runs)], indent=1))
        elif watch:
            _console.watch_statuses(runs)
        else:
            _console.show_statuses(read_statuses(runs))


@app.command()
def summary(runs: Annotated[Path, typer.Argument(help="A directory of runs.")] = Path("runs")) -> None:
    """Print the results of runs as a table and where to look at them."""
    with errors_as_messages():
        from nml_kit.batch import summary_of_runs

        summary_rows = summary_of_runs(runs)
    title = "Accuracy: a fraction with its 95 % interval; SVE and LSVR in nats; means over tasks"
    show_table(title, summary_rows.columns.tolist(), summary_rows.to_numpy())
    for page in sorted(runs.rglob("notebook.html")):
        typer.echo(f"Open {page.resolve().as_uri()}")


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="An executed notebook, or the directory of its run.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: beside the notebook, with .html.")] = None,
    images: Annotated[ImageFormat | None, typer.Option(help="Write each figure beside the notebook as well.")] = None,
) -> None:
    """Write an executed notebook as one HTML file whose figures work without a kernel or a network."""
    with errors_as_messages():
        from nml_kit.pages import export_html

        notebook = source / "notebook.ipynb" if source.is_dir() else source
        page = export_html(notebook, out or notebook.with_suffix(".html"))
        if images:
            from nml_kit.pages import save_figures

            for path in save_figures(notebook, images):
                typer.echo(f"Wrote {path}")
    typer.echo(f"Open {page.resolve().as_uri()}")


@app.command()
def report(
    runs: Annotated[Path, typer.Argument(help="A directory of runs.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Directory for the site; default: RUNS/report.")] = None,
) -> None:
    """Make a site of all runs and their notebooks that opens in a browser without a network."""
    with errors_as_messages():
        from nml_kit.batch import write_report

        index = write_report(runs, out)
    typer.echo(f"Open {index.as_uri()}")


@app.command()
def doctor() -> None:
    """Check everything the notebooks need; exit code 1 if something required is missing."""
    with errors_as_messages():
        from nml_kit.cli.doctor import run_checks

        checks = run_checks()
    rows = [
        ("ok" if check.ok else "MISSING" if check.required else "optional", check.name, check.detail,
         "" if check.ok else check.remedy)
        for check in checks
    ]  # fmt: skip
    show_table(f"nml_kit {__version__}", ["", "check", "found", "what to do"], rows)
    raise typer.Exit(int(any(check.required and not check.ok for check in checks)))
