"""What `nml doctor` looks at: everything the notebooks need, each with what to do if it is missing."""

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

MINIMUM_FREE_BYTES = 2 * 10**9
_EXTRAS = ("notebooks",)


@dataclass(frozen=True)
class Check:
    """One finding: `required` ones decide the exit code; `remedy` says what to do when it is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def run_checks() -> list[Check]:
    """Look at Python, packages, threads, store, shipped data, Jupyter kernel and Chromium, in this order.

    >>> [check.name for check in run_checks()][:2]
    ['Python', 'packages']
    """
    return [_python(), _packages(), _threads(), _store(), _data(), _kernel(), _chromium()]


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, f"{platform.python_version()} at {sys.executable}", "Install Python 3.11 or newer.")


def _packages() -> Check:
    try:
        stated = [Requirement(text) for text in requires("nml_kit") or []]
    except PackageNotFoundError:
        return Check("packages", False, "nml_kit is not installed", "Run: pip install -e '.[notebooks]'")
    needed = [one for one in stated if not one.marker or any(one.marker.evaluate({"extra": e}) for e in _EXTRAS)]
    problems = [problem for one in needed if (problem := _package_problem(one))]
    detail = "; ".join(problems) or f"{len(needed)} found, torch {version('torch')}, plotly {version('plotly')}"
    return Check("packages", not problems, detail, "Run: pip install --upgrade 'nml_kit[notebooks]'")


def _package_problem(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is missing"
    fits = requirement.specifier.contains(Version(found), prereleases=True)
    return "" if fits else f"{requirement.name} {found} is not {requirement.specifier}"


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return Check(
        "torch threads", threads <= cores, f"{threads} of {cores} cores, {device}",
        f"Set OMP_NUM_THREADS to {cores} or less.", required=False,
    )  # fmt: skip


def _store() -> Check:
    from nml_kit.store import Store

    root = Store().root
    existing = next(parent for parent in (root, *root.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("store", False, f"{root}: {error}", "Set NML_HOME to a directory that you can write to.")
    enough = free >= MINIMUM_FREE_BYTES
    remedy = f"Free {MINIMUM_FREE_BYTES / 1e9:.0f} GB (nml store prune), or set NML_HOME to a larger disk."
    return Check("store", enough, f"{root}, {free / 1e9:.1f} GB free", remedy)


def _data() -> Check:
    from nml_kit.data import data_dir

    files = sorted(path.stem for path in data_dir().glob("*.parquet"))
    detail = f"{len(files)} tasks in {data_dir()}: {', '.join(files)}" if files else f"nothing in {data_dir()}"
    return Check("shipped data", bool(files), detail, "Reinstall nml_kit, or set NML_DATA to its data directory.")


def _kernel() -> Check:
    name = "Jupyter kernel"
    try:
        return Check(name, True, f"ipykernel {version('ipykernel')}, started with {sys.executable}")
    except PackageNotFoundError:
        return Check(name, False, "ipykernel is missing", "Run: pip install 'nml_kit[notebooks]'")


def _chromium() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    remedy = "Only needed to save figures as PNG: install Chromium or set BROWSER_PATH."
    return Check("Chromium", bool(found), found or "not found", remedy, required=False)
