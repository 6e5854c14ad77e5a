"""Commands about data: `nml datasets`, `nml noise` and `nml store`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

noise_app = typer.Typer(help="Corrupt data sets that are too large for memory.", no_args_is_help=True)
store_app = typer.Typer(help="Look after the store of pre-trained backbones and features.", no_args_is_help=True)


def datasets(
    root: Annotated[Path | None, typer.Option(help="Directory of the data sets; default: $NML_DATASETS.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list for machines, with citations and places.")] = False,
) -> None:
    """List the data sets that have names: what for, classes, splits, licence, and which are here."""
    from nml_kit.cli.console import show
    from nml_kit.data import dataset_rows

    rows = dataset_rows(root)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    columns = ["name", "use", "classes", "splits", "licence"]
    cells = [(*(row[column] for column in columns), "yes" if row["present"] else "") for row in rows]
    show("Data sets by name; anything else by its path", [*columns, "here"], cells)


@store_app.command("list")
def list_entries(kind: Annotated[str | None, typer.Argument(help="Only this kind.")] = None) -> None:
    """List what the store holds."""
    from nml_kit.cli.console import show
    from nml_kit.store import Store

    store = Store()
    entries = list(store.entries(kind))
    rows = [
        (entry.kind, entry.digest[:12], f"{entry.bytes / 1e6:.1f}", entry.created, entry.problem) for entry in entries
    ]
    show(str(store.root), ["kind", "digest", "MB", "created (UTC)", "problem"], rows)
    typer.echo(f"{len(entries)} entries, {sum(entry.bytes for entry in entries) / 1e6:.1f} MB")
    for copies in sorted((store.root / "shards").glob("*/")):
        size = sum(path.stat().st_size for path in copies.glob("*.tar"))
        typer.echo(f"noisy copies of shards, {size / 1e6:.1f} MB, which nothing prunes: {copies}")


@store_app.command()
def verify() -> None:
    """Check every byte of every entry; exit code 1 if one is corrupt."""
    from nml_kit.store import Store

    corrupt = Store().verify()
    for entry in corrupt:
        typer.secho(f"{entry.path}: {entry.problem}", err=True, fg="red")
    typer.echo(f"{len(corrupt)} corrupt entries" + (": `nml store prune --corrupt` deletes them." if corrupt else "."))
    raise typer.Exit(int(bool(corrupt)))


@store_app.command()
def prune(
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Only corrupt entries, no unfinished work.")] = False,
) -> None:
    """Delete corrupt entries and unfinished work that no process holds."""
    from nml_kit.store import Store

    removed = Store().prune(corrupt_only=corrupt)
    for path in removed:
        typer.echo(f"deleted {path}")
    typer.echo(f"{len(removed)} deleted.")


@noise_app.command("captions")
def noise_captions(
    shards: Annotated[str, typer.Argument(help="WebDataset shards: 'in-{000..999}.tar'.")],
    out: Annotated[Path, typer.Argument(help="A directory for their copies and the record.")],
    ratio: Annotated[float, typer.Option(help="Fraction of all samples that exchange captions.")],
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    caption: Annotated[str, typer.Option(help="Suffix of the captions in the shards.")] = "txt",
) -> None:
    """Copy shards with some captions exchanged, across all of them; interrupted and called again, it goes on."""
    from nml_kit.data import inject_caption_noise_into_shards, read_noise_settings

    record = inject_caption_noise_into_shards(
        shards, out, ratio, seed=seed, caption=caption, progress=sys.stderr.isatty()
    )
    about = read_noise_settings(record)
    typer.echo(f"{about['changed']} of {about['samples']} samples have another's caption; who has whose: {record}")
