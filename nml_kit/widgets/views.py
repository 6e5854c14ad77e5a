"""What explorers show of the choices made in them: figures, and samples with a line of text under each."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray

from nml_kit.data import Task, load_task
from nml_kit.inference import RANDOM_INIT, ratio_label
from nml_kit.plots import (
    MOST_CLASSES,
    paired_accuracies,
    paired_spectra,
    spectral_finding,
    spectral_plane,
    spectrum_view,
)
from nml_kit.spectrum import described_direction
from nml_kit.study import (
    ResultKey,
    SpectraKey,
    StudyResults,
    at_any_ratio,
    comparison,
    quantity_bands,
    spectral_points,
    tested_loadings,
    train_spectra,
)

ALL_SEEDS, EVERY_CLASS = "all", "every class"
FEATURES = {"LP": "raw features", "MLP": "after the MLP", "NMTune": "after NMTune"}
_OF_A_DIRECTION, _OF_A_LOSS = 8, 16  # samples
View = Mapping[str, Any]


class Gallery(NamedTuple):
    """Samples to show: `inputs` (n, H, W, 3) uint8 or texts (n,), a caption for each, and a heading."""

    inputs: NDArray[Any]
    captions: Sequence[str]
    heading: str


def spectrum_figures(
    results: StudyResults, spectra: Mapping[SpectraKey, pd.DataFrame], view: View
) -> tuple[go.Figure, go.Figure]:
    """The spectra that the choices of a `SpectrumExplorer` name, and their SVE against their LSVR.

    `spectra` are those of `spectra_by_choice`, of test splits; those of train splits are read or made (some seconds).
    """
    if view["split"] == "train":
        chosen = train_spectra(results, view["objective"], view["task"])
    else:
        chosen = spectra[view["objective"], view["task"], view["method"]]
    seed = None if view["seed"] == ALL_SEEDS else view["seed"]
    bands, points = quantity_bands(chosen, view["quantity"], seed=seed), spectral_points(chosen, seed=seed)
    means = points.groupby("ratio")[["sve", "lsvr"]].mean().reset_index()
    features = f"{view['split']}, {FEATURES.get(view['method'], view['method'])}"
    spectrum = spectrum_view(
        _at_ratios(bands, view["ratios"]), at_any_ratio(bands, view["between"]),
        title=f"{view['task']}, {features}: {spectral_finding(means)}",
        quantity=view["quantity"], scale=view["scale"], window=view["window"],
    )  # fmt: skip
    return spectrum, spectral_plane(_at_ratios(points, view["ratios"]), at_any_ratio(means, view["between"]))


def direction_gallery(results: StudyResults, view: View) -> Gallery:
    """The test samples that load most on the chosen direction of the chosen network's features."""
    task, loadings = tested_loadings(results, view["objective"], view["network"], view["task"])
    index = min(view["direction"], loadings.shape[1])
    rows, captions, separation = described_direction(loadings, index, task.labels, task.class_names, _OF_A_DIRECTION)
    heading = (
        f"Direction {index} of the raw features at {ratio_label(view['network'])} noise, first seed, test split: "
        f"{separation}. The samples that load most on it, of {len(task)}:"
    )
    return Gallery(task.inputs(rows), captions, heading)


def accuracies_of_pair(keys: Sequence[ResultKey], changes: pd.DataFrame, what: str, *, chosen: str) -> go.Figure:
    """The rows of a table of changes (see `comparison.task_changes`) that change most; `what` they are, in words."""
    first, second = map(comparison.result_name, keys)
    title = f"{first} → {second}: {comparison.changes_in_words(changes, what)}"
    shown = comparison.largest_changes(changes, MOST_CLASSES)
    return paired_accuracies(shown, (first, second), chosen=chosen, title=title)


def pair_of_spectra(
    keys: Sequence[ResultKey],
    panel: str,
    spectra: Mapping[tuple[ResultKey, str], pd.Series],
    metrics: Mapping[tuple[ResultKey, str], Mapping[str, float]],
) -> go.Figure:
    """The spectra of two results on one panel: of all classes, so that a class or a confusion does not change them."""
    means = pd.DataFrame([metrics[key, panel] for key in keys]).assign(ratio=[0, 1])
    first, second = (spectra[key, panel] for key in keys)
    title = f"Spectrum of {panel}: {spectral_finding(means)}"
    names = comparison.result_name(keys[0]), comparison.result_name(keys[1])
    return paired_spectra(first, second, names, title=title)


def lost_gallery(lost: pd.DataFrame, view: View) -> Gallery:
    """The samples of `comparison.changed_samples` that are of the chosen class, and taken for the chosen other."""
    task = task_of_panel(view["task"])
    for column, choice in (("label", view["given"]), ("prediction", view["said"])):
        if choice != EVERY_CLASS:
            lost = lost[lost[column] == task.class_names.index(choice)]
    shown = lost.head(_OF_A_LOSS)
    rows = pd.Series(np.arange(len(task)), index=task.ids).loc[shown["sample"]].to_numpy()
    captions = comparison.sample_captions(shown, task.domains[rows], task.class_names)
    heading = f"{len(lost)} samples are right less often in the second; the {len(shown)} with the largest loss:"
    return Gallery(task.inputs(rows), captions, heading)


@lru_cache(maxsize=16)
def task_of_panel(panel: str) -> Task:
    """The task of a panel without its domain, such as "OOD · icons": a protocol holds no " · "."""
    return load_task(panel.split(" · ", 1)[1])


def _at_ratios(table: pd.DataFrame, ratios: Sequence[float | str]) -> pd.DataFrame:
    chosen = ratios or [table["ratio"].min()]
    return table[table["ratio"].isin(chosen) | (table["ratio"].isna() & (RANDOM_INIT in chosen))]
