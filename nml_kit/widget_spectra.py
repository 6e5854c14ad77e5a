"""The spectrum explorer: the singular values of every task, method and noise ratio, by looking."""

from collections.abc import Set
from functools import lru_cache
from typing import get_args

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit._explorer import Card, Explorer, gallery_html
from nml_kit._figure_view import Point
from nml_kit.datasets import Task
from nml_kit.directions import class_separation, singular_directions, strongest_samples
from nml_kit.explorer_tables import (
    Quantity,
    at_any_ratio,
    page_tables,
    quantity_bands,
    spectra_by_choice,
    spectral_points,
)
from nml_kit.look import RANDOM_INIT, ratio_label, ratios_in_order
from nml_kit.plots_explorer import Scale, spectral_finding, spectral_plane, spectrum_page, spectrum_view
from nml_kit.profiles import Objective
from nml_kit.results import StudyResults, tested_features

_ALL = "all"
_SAMPLES = 8  # shown of a direction
_METHODS = {"LP": "raw features", "MLP": "after the MLP", "NMTune": "after NMTune"}


class SpectrumExplorer(Explorer):
    """Singular spectra by task, method, noise ratio and seed; hover an index to see what its direction stands for.

    `results` come from `load_results`. `view` holds objective, task, method, ratios, seed, quantity, scale, window
    (first and last index), between (a ratio: the dashed line), direction and network (which samples are shown).
    """

    def __init__(self, results: StudyResults) -> None:
        self._results, self._spectra = results, spectra_by_choice(results.spectra)
        trained = [ratio for ratio in ratios_in_order(results.spectra) if not np.isnan(ratio)]
        objectives, panels, methods = (list(dict.fromkeys(names)) for names in zip(*self._spectra, strict=True))
        length = int(results.spectra["index"].max())
        pick = ipywidgets.Dropdown
        labels = [(ratio_label(ratio), ratio) for ratio in trained]
        controls = {
            "objective": pick(options=objectives, value=objectives[-1], description="pre-training"),
            "task": pick(options=panels, description="task"),
            "method": pick(options=[(_METHODS.get(name, name), name) for name in methods], description="features"),
            "quantity": pick(options=get_args(Quantity), description="quantity"),
            "scale": pick(options=get_args(Scale), value="log y", description="scale"),
            "seed": pick(options=[_ALL, *sorted(map(int, results.spectra["seed"].unique()))], description="seed"),
            "window": ipywidgets.IntRangeSlider(min=1, max=length, value=(1, length), description="index"),
            "between": ipywidgets.FloatSlider(
                min=trained[0], max=trained[-1], step=0.005, readout_format=".1%", description="dashed at"
            ),
            "direction": ipywidgets.IntSlider(min=1, max=length, description="direction"),
            "network": pick(options=labels, description="network"),
            "ratios": ipywidgets.SelectMultiple(
                options=[*labels, (RANDOM_INIT, RANDOM_INIT)], value=trained, rows=len(labels) + 1, description="noise"
            ),
        }
        self._loadings = lru_cache(maxsize=32)(self._loadings_of)
        self.spectrum, self.plane, self.samples = Card(640), Card(380), ipywidgets.HTML()
        self.spectrum.view.on("hover", self._hovered)
        super().__init__(controls, [self.spectrum, self.plane], self.samples)

    def redraw(self, changed: Set[str]) -> None:
        """Draw the figures anew unless only what the samples depend on has changed."""
        if changed - {"direction", "network"}:
            spectrum, plane = self._figures()
            self.spectrum.show(spectrum)
            self.plane.show(plane)
        if changed & {"direction", "network", "task", "objective"}:
            self.samples.value = self._gallery()

    def static(self) -> go.Figure:
        """All tasks and methods of the chosen objective and quantity, with a menu and a slider of the figure's own."""
        objective, quantity = self.view["objective"], self.view["quantity"]
        title = f"Spectra of the features that a head's classifier reads, {objective} pre-training, by task"
        return spectrum_page(*page_tables(self._spectra, objective, quantity), quantity=quantity, title=title)

    def _figures(self) -> tuple[go.Figure, go.Figure]:
        view = self.view
        spectra = self._spectra[view["objective"], view["task"], view["method"]]
        seed = None if view["seed"] == _ALL else view["seed"]
        bands, points = quantity_bands(spectra, view["quantity"], seed=seed), spectral_points(spectra, seed=seed)
        means = points.groupby("ratio")[["sve", "lsvr"]].mean().reset_index()
        title = f"{view['task']}, {_METHODS.get(view['method'], view['method'])}: {spectral_finding(means)}"
        spectrum = spectrum_view(
            self._chosen(bands), at_any_ratio(bands, view["between"]), title=title,
            quantity=view["quantity"], scale=view["scale"], window=view["window"],
        )  # fmt: skip
        return spectrum, spectral_plane(self._chosen(points), at_any_ratio(means, view["between"]))

    def _chosen(self, table: pd.DataFrame) -> pd.DataFrame:
        ratios = self.view["ratios"] or [table["ratio"].min()]
        return table[table["ratio"].isin(ratios) | (table["ratio"].isna() & (RANDOM_INIT in ratios))]

    def _hovered(self, point: Point) -> None:
        """The index under the pointer becomes the direction, the line's ratio the network."""
        by_label = dict(self._controls["network"].options)
        if point.trace.legendgroup in by_label:
            self.choose(direction=int(point.x), network=by_label[point.trace.legendgroup])

    def _gallery(self) -> str:
        view = self.view
        _, task_name, *domain = view["task"].split(" · ")
        task, loadings = self._loadings(view["objective"], view["network"], task_name, *domain)
        index = min(view["direction"], loadings.shape[1])
        strongest = strongest_samples(loadings, index, _SAMPLES)
        separation = class_separation(loadings[:, index - 1 : index], task.labels)[0]
        captions = [f"{task.class_names[task.labels[n]]} {loadings[n, index - 1]:+.2f}" for n in strongest]
        heading = (
            f"Direction {index} of the raw features at {ratio_label(view['network'])} noise, first seed: classes make "
            f"{separation:.0%} of its variance. The samples that load most on it, of {len(task)}:"
        )
        return gallery_html(task.inputs(strongest), captions, heading)

    def _loadings_of(self, objective: Objective, ratio: float, name: str, domain: str = "") -> tuple[Task, np.ndarray]:
        task, features = tested_features(self._results, objective, ratio, name)
        rows = np.flatnonzero(task.domains == domain) if domain else np.arange(len(task))
        return task.take(rows), singular_directions(features.values[rows])[0]
