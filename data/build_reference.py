"""Gather the reference results from finished runs of `nml run notebooks/suites/small.yaml` and the store they filled.

python data/build_reference.py runs/small
"""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from sheet import fill, markdown

from nml_kit import Store, load_profile
from nml_kit.backbones import save_frozen
from nml_kit.batch import read_statuses
from nml_kit.inference import judge_claims, registry_table, verdict_counts
from nml_kit.store import write_json
from nml_kit.study import (
    Origin,
    Profile,
    backbone_file,
    is_origin_stored,
    pretrained_backbone,
    pretraining_task,
    read_run_tables,
    write_results,
)

HERE = Path(__file__).parent
PROFILE = "small"
STUDY = ("00_start_here", "02_transfer")
SAMPLE_ORDER = ["objective", "task", "protocol", "sample", "method", "fraction", "label_noise", "ratio", "seed"]
PACKAGES = ("nml_kit", "numpy", "open_clip_torch", "pandas", "pyarrow", "scikit-learn", "scipy", "torch")


def tables(runs: Path) -> dict[str, pd.DataFrame]:
    """Rows, samples and spectra as the notebooks wrote them, sorted to be small, and the verdicts on all of them."""
    rows, samples = read_run_tables(runs, profile=PROFILE)
    rows = rows[rows["experiment"].isin(STUDY)]
    spectra = pd.concat([pd.read_parquet(path) for path in sorted(runs.rglob("spectra.parquet"))], ignore_index=True)
    spectra["share"] = spectra["share"].astype(np.float32)
    return {
        "rows": rows.reset_index(drop=True),
        "samples": samples.sort_values(SAMPLE_ORDER, ignore_index=True),
        "spectra": spectra.drop(columns="cumulative_energy"),
        "verdicts": judge_claims(rows, samples),
    }


def write_backbones(profile: Profile, objectives: list[str], out: Path) -> None:
    """Write the networks of the first seed; they must be in the store."""
    store, task = Store(), pretraining_task(profile)
    for objective in objectives:
        for ratio in profile.ratios:
            origin = Origin(ratio, profile.seeds[0], objective)
            if not is_origin_stored(profile, task, origin, store=store):
                raise SystemExit(f"Expected {origin} in the store {store.root}: set NML_HOME to that of the runs.")
            save_frozen(pretrained_backbone(profile, task, origin, store=store), out / backbone_file(objective, ratio))


def provenance(profile: Profile, runs: Path, checkout: Path) -> dict[str, Any]:
    """What made the results: settings, versions, machine, and the time of each run that computed them."""
    statuses = [run for run in read_statuses(runs) if run.state in ("done", "hit") and run.name.startswith(STUDY)]
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    return {
        "command": "nml run notebooks/suites/small.yaml && python data/build_reference.py runs/small",
        "commit": git.stdout.strip(),
        "profile": profile.model_dump(mode="json"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, no GPU",
        "seconds": {status.name: round(status.seconds or 0) for status in statuses},
        "started": min(status.started for status in statuses),
        "finished": max(status.finished for status in statuses),
    }


def count_table(verdicts: pd.DataFrame) -> str:
    """The number of rows of each claim by verdict, for people."""
    counts = verdict_counts(verdicts)
    counts.insert(2, "what is claimed", counts["claim"].map(registry_table().set_index("id")["statement"]))
    return markdown(counts.columns, counts.to_numpy())


def row_table(verdicts: pd.DataFrame) -> str:
    """Every verdict with its effect and interval, for people."""
    rows = [
        (row.claim, row.objective, f"{row.protocol} {row.task}", row.metric, row.contrast,
         "–" if np.isnan(row.effect) else f"{row.effect:+.4f} [{row.low:+.4f}, {row.high:+.4f}]", row.verdict)
        for row in verdicts[verdicts["task"] != ""].itertuples(index=False)
    ]  # fmt: skip
    return markdown(("claim", "pre-training", "task", "metric", "contrast", "effect, 95 % interval", "verdict"), rows)


def write_pages(out: Path, verdicts: pd.DataFrame, known: dict[str, Any]) -> None:
    """Fill the generated parts of the page of the results and, where it is ours, of the README."""
    counts = count_table(verdicts)
    hours = sum(known["seconds"].values()) / 3600
    ran = f"`{known['command']}` at commit {known['commit'][:12]}, {known['machine']}, {hours:.1f} hours of runs"
    page = f"""# Reference results

The profile `{PROFILE}` run once: {ran}, not undisturbed. Settings, seeds,
versions and times: [provenance.json](provenance.json). What each file is: `nml_kit/study/results.py`.

## Verdicts, counted

{counts}

## Every verdict

Effects are fractions (accuracy) or nats (SVE, LSVR). Intervals are plain 95 %; verdicts rest on adjusted p-values.

{row_table(verdicts)}
"""
    (out / "README.md").write_text(page, encoding="utf-8")
    readme = HERE.parent / "README.md"
    if out.parent == HERE:
        readme.write_text(fill(readme.read_text(encoding="utf-8"), "verdicts", counts), encoding="utf-8")


def main(
    runs: Annotated[Path, typer.Argument(help="The directory of the suite's runs.")],
    tables_in: Annotated[Path | None, typer.Option(help="Runs that wrote the tables again from the store.")] = None,
    out: Annotated[Path, typer.Option(help="Where the reference results go.")] = HERE / "reference",
    checkout: Annotated[Path, typer.Option(help="The checkout whose commit made the runs.")] = HERE,
) -> None:
    """Write data/reference anew."""
    profile = load_profile(PROFILE)
    found, known = tables(tables_in or runs), provenance(profile, runs, checkout)
    shutil.rmtree(out, ignore_errors=True)
    write_results(out, **found)
    write_backbones(profile, sorted(found["rows"]["objective"].unique()), out)
    write_json(out / "provenance.json", known)
    write_pages(out, found["verdicts"], known)


if __name__ == "__main__":
    typer.run(main)
