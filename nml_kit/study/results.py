"""Results to look at: the tables of a study and its networks, of the reference or of anyone's runs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nml_kit.backbones import Backbone
from nml_kit.data import Task, load_task
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.features import Features, extract_features
from nml_kit.spectrum import singular_directions, singular_values
from nml_kit.store import Store, read_table
from nml_kit.study.conditions import Origin, downstream_tasks, is_origin_stored, pretrained_backbone, pretraining_task
from nml_kit.study.profile import Objective, load_profile
from nml_kit.study.reference import reference_backbone, reference_dir
from nml_kit.study.run_tables import read_run_tables
from nml_kit.study.spectra_tables import Panel, panels_by_name

SPECTRUM_COLUMNS = ["profile", "objective", "task", "protocol", "test_domain", "method", "ratio", "seed", "index",
                    "share", "total"]  # fmt: skip
_WHOLE = {"fraction": 1.0, "label_noise": 0.0}


@dataclass(frozen=True, eq=False)
class StudyResults:
    """Tables of one profile: `rows` (RESULT_COLUMNS), `samples` (SAMPLE_COLUMNS), `spectra` (SPECTRUM_COLUMNS).

    All are of heads trained on the whole, clean training sets. `network` gives the frozen network of an objective and a
    ratio (fraction), that of the first seed.
    """

    profile: str
    rows: pd.DataFrame
    samples: pd.DataFrame
    spectra: pd.DataFrame
    network: Callable[[Objective, float], Backbone]

    def panel(self, name: str) -> Panel:
        """The task and domain that a name such as "OOD · icons · outline" stands for; UnknownNameError if nothing."""
        if name not in self._panels:
            raise unknown_name("panel", name, self._panels)
        return self._panels[name]

    @cached_property
    def _panels(self) -> dict[str, Panel]:
        return panels_by_name(self.spectra)


def load_results(directory: str | Path = "", *, profile: str = "small") -> StudyResults:
    """Read the results of a profile found anywhere under `directory`, of the reference if that is empty.

    Raises InvalidInputError if there are none of the profile, DataFileError if a file cannot be read.

    >>> sorted(load_results().rows["method"].unique())
    ['LP', 'MLP', 'NMTune']
    """
    place = Path(directory) if str(directory) else reference_dir()
    rows, samples = read_run_tables(place, profile=profile)
    ours = rows["objective"].isin(get_args(Objective))  # not those of models that others trained
    return StudyResults(
        profile,
        _whole(rows[ours]),
        _whole(samples),
        _spectra(place, profile),
        _network_maker(profile) if str(directory) else reference_backbone,
    )


@lru_cache(maxsize=64)
def tested_loadings(
    results: StudyResults, objective: Objective, ratio: float, panel: str
) -> tuple[Task, NDArray[np.float64]]:
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
    found = []
    for ratio in sorted(mine["ratio"].dropna().unique()):
        features = whole_features(results, objective, float(ratio), chosen.task)
        is_source = ~np.isin(features.domains, chosen.held_out)
        values = singular_values(features.values[is_source & (features.splits == "train")])
        table = {"index": np.arange(1, len(values) + 1), "share": values / values.sum(), "total": values.sum()}
        found.append(pd.DataFrame({"ratio": ratio, "seed": int(mine["seed"].min()), **table}))
    return pd.concat(found, ignore_index=True)


def _whole(table: pd.DataFrame) -> pd.DataFrame:
    chosen = (table[list(_WHOLE)] == list(_WHOLE.values())).all(axis=1)
    return table[chosen].reset_index(drop=True)


def _spectra(place: Path, profile: str) -> pd.DataFrame:
    found = []
    for path in sorted(place.rglob("spectra.parquet")):
        table = read_table(path, [*SPECTRUM_COLUMNS, *_WHOLE]).to_pandas()
        found.append(_whole(table[table["profile"] == profile])[SPECTRUM_COLUMNS])
    if not any(map(len, found)):
        raise InvalidInputError(
            f"Expected spectra of profile {profile!r} in files spectra.parquet under {place}, found none: run "
            "`00_start_here`, or name the directory of runs."
        )
    every = pd.concat(found, ignore_index=True)
    return every.drop_duplicates(SPECTRUM_COLUMNS[:-2], ignore_index=True)


def _network_maker(profile_name: str) -> Callable[[Objective, float], Backbone]:
    profile = load_profile(profile_name)

    def network(objective: Objective, ratio: float) -> Backbone:
        task, store = pretraining_task(profile), Store()
        origin = Origin(ratio, profile.seeds[0], objective)
        if np.isnan(ratio) or not is_origin_stored(profile, task, origin, store=store):
            raise InvalidInputError(
                f"Expected a network of {objective} pre-training at ratio {ratio:g}, seed {origin.seed}, in the store "
                f"{store.root}: run `00_start_here` with profile {profile_name!r}, or set NML_HOME to where it ran."
            )
        return pretrained_backbone(profile, task, origin, store=store, progress=False)

    return network
