"""Results on disk: written by notebooks, read from many runs or from data/reference, as the tables of one study.

data/reference holds the profile `small` run once in full (rows, samples, spectra, verdicts, provenance), and ten of its
networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float

from nml_kit.backbones import Backbone, load_frozen
from nml_kit.data import Task, data_dir, load_task
from nml_kit.errors import DataFileError, InvalidInputError, UnknownNameError, unknown_name
from nml_kit.features import Features, extract_features
from nml_kit.spectrum import singular_directions, singular_values
from nml_kit.store import Store, read_table, replacing
from nml_kit.study.conditions import Origin, downstream_tasks, is_origin_stored, pretrained_backbone, pretraining_task
from nml_kit.study.fit import RESULT_COLUMNS
from nml_kit.study.profile import Objective, Profile, load_profile
from nml_kit.study.run import noise_name, recipe_hash
from nml_kit.study.spectra import Panel, domain_names

_STUDY = ("profile", "recipe", "noise", "backbone", "objective", "ratio", "seed", "task", "protocol", "train_domain",
          "method", "fraction", "label_noise")  # fmt: skip
SAMPLE_COLUMNS = (*_STUDY, "sample", "label", "prediction", "correct")
SPECTRUM_COLUMNS = (*_STUDY, "test_domain", "index", "share", "total")
_TYPES = {
    **dict.fromkeys(("ratio", "fraction", "label_noise", "value", "share", "total"), "float64"),
    **dict.fromkeys(("seed", "n", "label", "prediction", "index"), "int64"),
    "correct": "bool",
}


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Tables of one profile: `rows` (RESULT_COLUMNS), `samples` (SAMPLE_COLUMNS), `spectra` (SPECTRUM_COLUMNS).

    All are of heads trained on whole, clean training sets. `network` gives that of an objective, a ratio (fraction) and
    the first seed.
    """

    profile: str
    rows: pd.DataFrame
    samples: pd.DataFrame
    spectra: pd.DataFrame
    network: Callable[[Objective, float], Backbone]

    def panel(self, name: str) -> Panel:
        """The task and domain that a name such as "OOD · icons · outline" stands for: a task's own may hold a " · ".

        Raises UnknownNameError if nothing has the name, InvalidInputError if two have.
        """
        panels = self.spectra[list(Panel._fields)].drop_duplicates()
        names = domain_names(panels)
        named = panels[names == name].to_numpy().tolist()
        if not named:
            raise unknown_name("panel", name, names)
        if len(named) > 1:
            raise InvalidInputError(f"Expected one task and domain of the name {name!r}, got {named}; rename one.")
        return Panel(*named[0])


def write_results(run_dir: str | Path, **tables: pd.DataFrame) -> list[Path]:
    """Write each table to `run_dir/<name>.parquet`, whole or not at all; an empty `run_dir` writes nothing."""
    paths = [Path(run_dir) / f"{name}.parquet" for name in tables if str(run_dir)]
    for path in paths:
        with replacing(path) as temporary:
            tables[path.stem].to_parquet(temporary, index=False, compression="zstd", compression_level=9)
    return paths


def read_run_tables(results: str | Path, *, profile: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gather the rows (RESULT_COLUMNS) and samples (SAMPLE_COLUMNS) of a profile found anywhere under `results`.

    What several notebooks wrote of one study is there once; two results that differ stay two, for the reader to refuse.
    Where an objective has several recipes or kinds of noise, the profile's own are taken. Files rows.parquet in other
    columns, and all other files, are passed over. The order does not depend on the files'. Raises InvalidInputError if
    there are no rows or no samples of the profile, DataFileError if a file cannot be read.
    """
    same = [column for column in RESULT_COLUMNS if column not in ("experiment", "version")]
    rows = _gathered(Path(results), "rows", RESULT_COLUMNS, profile, same)
    return rows, _gathered(Path(results), "samples", SAMPLE_COLUMNS, profile, SAMPLE_COLUMNS)


def load_results(directory: str | Path = "", *, profile: str = "small") -> StudyResults:
    """Read the results of a profile found anywhere under `directory`, of the reference if that is empty.

    Raises InvalidInputError if there are none of the profile, DataFileError if a file cannot be read.

    >>> sorted(load_results().rows["method"].unique())
    ['LP', 'MLP', 'NMTune']
    """
    place = Path(directory) if str(directory) else reference_dir()
    rows, samples = read_run_tables(place, profile=profile)
    tables = [rows, samples, _gathered(place, "spectra", SPECTRUM_COLUMNS, profile, SPECTRUM_COLUMNS[:-2])]
    network = partial(_stored_network, load_profile(profile)) if str(directory) else reference_backbone
    for number, table in enumerate(tables):  # without models that others trained
        kept = table["objective"].isin(get_args(Objective)) & (table["fraction"] == 1) & (table["label_noise"] == 0)
        tables[number] = table[kept].reset_index(drop=True)
    return StudyResults(profile, tables[0], tables[1], tables[2], network)


def reference_dir() -> Path:
    """Directory of the reference results, of profile "small"."""
    return data_dir() / "reference"


def backbone_file(objective: Objective, ratio: float) -> str:
    """Where a reference backbone lies, relative to `reference_dir`.

    >>> backbone_file("supervised", 0.05)
    'backbones/supervised-0.05.safetensors'
    """
    return f"backbones/{objective}-{ratio:g}.safetensors"


def reference_backbone(objective: Objective, ratio: float) -> Backbone:
    """A network of the reference results, of the first seed and a ratio (fraction) of `small`, weights in float16.

    Raises UnknownNameError if there is none for this objective and ratio, DataFileError if it is damaged.

    >>> reference_backbone("supervised", 0.3)(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
    torch.Size([2, 192])
    """
    path = reference_dir() / backbone_file(objective, ratio)
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.safetensors"))
        raise unknown_name("reference backbone", path.stem, known)
    return load_frozen(path)


@lru_cache(maxsize=64)
def tested_loadings(
    results: StudyResults, objective: Objective, ratio: float, panel: str
) -> tuple[Task, Float[np.ndarray, "n r"]]:
    """The test samples of a panel and their loadings (N, r) on the singular directions of its network at a ratio.

    `panel` is as "ID · icons", or "OOD · icons · outline": then they are those of outline. Features are read from the
    store, or made and kept there: some seconds the first time. Raises UnknownNameError for an unknown panel,
    InvalidInputError if the network is not there.
    """
    chosen = results.panel(panel)
    test = load_task(chosen.task).select(split="test")
    features = extract_features(test, results.network(objective, ratio), progress=False)
    rows = np.flatnonzero(np.isin(test.domains, chosen.held_out or test.domains))
    return test.take(rows), singular_directions(features.values[rows])[0]


@lru_cache(maxsize=16)
def whole_features(results: StudyResults, objective: Objective, ratio: float, task: str) -> Features:
    """Train and test features of a task, cut to the profile's size, from the network of `results` at a ratio.

    They are read from the store, or made and kept there: some seconds the first time. Raises UnknownNameError for a
    task that is not the profile's, InvalidInputError if the network is not there.
    """
    tasks = downstream_tasks(load_profile(results.profile))
    if task not in tasks:
        raise unknown_name("task", task, tasks)
    return extract_features(tasks[task], results.network(objective, ratio), progress=False)


@lru_cache(maxsize=16)
def train_spectra(results: StudyResults, objective: Objective, panel: str) -> pd.DataFrame:
    """Spectra of what a head is trained on: raw features of the first seed's networks at every ratio.

    `panel` is as "ID · icons", or "OOD · icons · outline": then what is not outline. Columns: ratio, seed, index (from
    1), share (σ_i/Σσ), total (Σσ). Raises as `whole_features`.
    """
    chosen = results.panel(panel)
    mine = results.rows[results.rows["objective"] == objective]
    spectra = []
    for ratio in sorted(mine["ratio"].dropna().unique()):
        features = whole_features(results, objective, float(ratio), chosen.task)
        is_source = ~np.isin(features.domains, chosen.held_out)
        values = singular_values(features.values[is_source & (features.splits == "train")])
        table = {"index": np.arange(1, len(values) + 1), "share": values / values.sum(), "total": values.sum()}
        spectra.append(pd.DataFrame({"ratio": ratio, "seed": int(mine["seed"].min()), **table}))
    return pd.concat(spectra, ignore_index=True)


def _gathered(place: Path, name: str, columns: Sequence[str], profile: str, same: Sequence[str]) -> pd.DataFrame:
    """The table `name` of a profile from all files under a place, each row that is the `same` once."""
    tables = [table for path in sorted(place.rglob(f"{name}.parquet")) if (table := _read(path, columns)) is not None]
    gathered = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))
    mine = gathered["profile"] == profile
    if not mine.any():
        profiles = ", ".join(sorted(gathered["profile"].unique())) or "none of any profile"
        raise InvalidInputError(
            f"Expected results of profile {profile!r} in files {name}.parquet under {place}, found {profiles}: "
            "name the directory of runs or of reference results."
        )
    for objective, (recipe, noise) in _own_identities(profile).items():
        others = gathered["objective"] != objective
        own = mine & ~others & (gathered["recipe"] == recipe) & (gathered["noise"] == noise)
        if own.any():  # those of other recipes or kinds of noise are left out
            mine &= own | others
    return gathered[mine].drop_duplicates(list(same)).sort_values(list(same), ignore_index=True, kind="stable")


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
    """The table's columns, texts but for numbers; None if it has others, as a notebook on another subject may."""
    table = read_table(path, [])
    if not set(columns) <= set(table.column_names):
        return None
    schema = pa.schema([(name, pa.type_for_alias(_TYPES.get(name, "string"))) for name in columns])
    try:
        frame = table.select(columns).cast(schema).to_pandas()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataFileError(f"Expected results in {path}, got: {error}; run again.") from error
    if frame.drop(columns="ratio").isna().any(axis=None) and "sample" in columns:
        raise DataFileError(f"Expected no empty cells in {path}, but there are some; run again.")
    return frame


def _own_identities(profile: str) -> dict[str, tuple[str, str]]:
    """Recipe and kind of noise of a shipped profile, by objective; none for a profile that is not shipped."""
    try:
        settings = load_profile(profile)
    except UnknownNameError:
        return {}
    objectives: tuple[Objective, ...] = get_args(Objective)
    return {name: (recipe_hash(settings, name), noise_name(settings, name)) for name in objectives}


def _stored_network(profile: Profile, objective: Objective, ratio: float) -> Backbone:
    """The network of a profile's first seed; InvalidInputError if the store has none."""
    task, store, origin = pretraining_task(profile), Store(), Origin(ratio, profile.seeds[0], objective)
    if np.isnan(ratio) or not is_origin_stored(profile, task, origin, store=store):
        raise InvalidInputError(
            f"Expected a network of {objective} pre-training at ratio {ratio:g}, seed {origin.seed}, in the store "
            f"{store.root}: run `00_start_here` with profile {profile.name!r}, or set NML_HOME to where it ran."
        )
    return pretrained_backbone(profile, task, origin, store=store, progress=False)
