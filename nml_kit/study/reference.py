"""The reference results in data/reference: the profile `small` run once in full, and ten of its networks.

Beside what this module reads there are, for `read_run_tables` and plots: rows.parquet and samples.parquet of the study,
spectra.parquet (shares of the singular values as float32), verdicts.parquet on the claims, provenance.json.
"""

from pathlib import Path

from nml_kit.backbones import Backbone, load_frozen
from nml_kit.data import data_dir
from nml_kit.errors import unknown_name
from nml_kit.study.profile import Objective


def reference_dir() -> Path:
    """Directory of the reference results, for `read_run_tables(reference_dir(), profile="small")`."""
    return data_dir() / "reference"


def reference_backbone(objective: Objective, ratio: float) -> Backbone:
    """A network of the reference results, of the first seed and a ratio (fraction) of `small`, weights in float16.

    Raises UnknownNameError if there is none for this objective and ratio, DataFileError if it is damaged.

    >>> import numpy as np
    >>> reference_backbone("supervised", 0.3)(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    torch.Size([2, 192])
    """
    path = reference_dir() / backbone_file(objective, ratio)
    if not path.exists():
        known = sorted(found.stem for found in path.parent.glob("*.safetensors"))
        raise unknown_name("reference backbone", path.stem, known)
    return load_frozen(path)


def backbone_file(objective: Objective, ratio: float) -> str:
    """Where a reference backbone lies, relative to `reference_dir`.

    >>> backbone_file("supervised", 0.05)
    'backbones/supervised-0.05.safetensors'
    """
    return f"backbones/{objective}-{ratio:g}.safetensors"
