"""What `nml doctor` looks at: everything the notebooks need, each with what to do if it is missing."""

import os
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement

MINIMUM_FREE_BYTES = 2 * 10**9


class Check(NamedTuple):
    """One finding: `required` ones decide the exit code; `remedy` says what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str
    required: bool = True


def run_checks() -> list[Check]:
    """Look at packages, threads, store, shipped data and Chromium, in this order.

    >>> [check.name for check in run_checks()][:2]
    ['packages', 'torch threads']
    """
    return [_packages(), _threads(), _store(), _data(), _chromium()]


def _packages() -> Check:
    remedy = "Run: pip install --upgrade 'nml_kit[notebooks]'"
    try:
        stated = [Requirement(text) for text in requires("nml_kit") or []]
    except PackageNotFoundError:
        return Check("packages", False, "nml_kit is not installed", "Run: pip install -e '.[notebooks]'")
    needed = [package for package in stated if not package.marker or package.marker.evaluate({"extra": "notebooks"})]
    if problems := list(filter(None, map(package_problem, needed))):
        return Check("packages", False, "; ".join(problems), remedy)
    return Check("packages", True, f"all {len(needed)}, torch {version('torch')}, plotly {version('plotly')}", remedy)


def package_problem(requirement: Requirement) -> str:
    """What keeps a requirement from being met; empty if nothing does."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(installed, prereleases=True)
    return "" if fits else f"{requirement.name} {installed} is not {requirement.specifier}"


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    detail, remedy = f"{threads} of {cores} cores, {device}", f"Set OMP_NUM_THREADS to {cores} or less."
    return Check("torch threads", threads <= cores, detail, remedy, required=False)


def _store() -> Check:
    from nml_kit.store import Store

    root = Store().root
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("store", False, f"{root}: {error}", "Set NML_HOME to a directory that you can write to.")
    remedy = f"Free {MINIMUM_FREE_BYTES / 1e9:.0f} GB (nml store prune), or set NML_HOME to a larger disk."
    return Check("store", free >= MINIMUM_FREE_BYTES, f"{root}, {free / 1e9:.1f} GB free", remedy)


def _data() -> Check:
    from nml_kit.data import data_dir

    tasks = sorted(path.stem for path in data_dir().glob("*.parquet"))
    detail = f"{len(tasks)} tasks in {data_dir()}: {', '.join(tasks)}" if tasks else f"nothing in {data_dir()}"
    return Check("shipped data", bool(tasks), detail, "Reinstall nml_kit, or set NML_DATA to its data directory.")


def _chromium() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    remedy = "Only needed to save figures as PNG: install Chromium or set BROWSER_PATH."
    return Check("Chromium", bool(path), path or "not found", remedy, required=False)
