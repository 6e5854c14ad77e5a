"""The spectrum explorer: the singular values of every task, method and noise ratio, by looking."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, get_args

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.inference import RANDOM_INIT, ratio_label, ratios_in_order
from nml_kit.plots import Scale, spectral_finding, spectral_plane, spectrum_page, spectrum_view
from nml_kit.spectrum import described_direction
from nml_kit.study import (
    Quantity,
    StudyResults,
    at_any_ratio,
    page_tables,
    quantity_bands,
    spectra_by_choice,
    spectral_points,
    tested_loadings,
    train_spectra,
)
from nml_kit.widgets.explorer import Card, Explorer, gallery_html
from nml_kit.widgets.view import Point

_ALL_SEEDS = "all"
_FEATURES = {"LP": "raw features", "MLP": "after the MLP", "NMTune": "after NMTune"}
_SAMPLES = 8  # of a direction


class SpectrumExplorer(Explorer):
    """Singular spectra by task, method, noise ratio and seed; hover an index to see what its direction stands for.

    `results` come from `load_results`. `view` holds objective, task, split, method, ratios, seed, quantity, scale,
    window (first and last index), between (a ratio: the dashed line), direction and network (whose samples are shown).
    """

    def __init__(self, results: StudyResults) -> None:
        self._results, self._spectra = results, spectra_by_choice(results.spectra)
        trained = [ratio for ratio in ratios_in_order(results.spectra) if not np.isnan(ratio)]
        objectives, panels, methods = (list(dict.fromkeys(names)) for names in zip(*self._spectra, strict=True))
        seeds = sorted(map(int, results.spectra["seed"].unique()))
        length = int(results.spectra["index"].max())
        pick = ipywidgets.Dropdown
        labels = [(ratio_label(ratio), ratio) for ratio in trained]
        controls = {
            "objective": pick(options=objectives, value=objectives[-1], description="pre-training"),
            "task": pick(options=panels, description="task"),
            "split": pick(options=["test", "train"], description="split"),
            "method": pick(options=[(_FEATURES.get(name, name), name) for name in methods], description="features"),
            "quantity": pick(options=get_args(Quantity), description="quantity"),
            "scale": pick(options=get_args(Scale), value="log y", description="scale"),
            "seed": pick(options=[_ALL_SEEDS, *seeds], description="seed"),
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
        self._all_options = {name: controls[name].options for name in ("method", "seed")}
        self.spectrum, self.plane, self.samples = Card(640), Card(380), ipywidgets.HTML()
        self.spectrum.view.on("hover", self._hovered)
        super().__init__(controls, [self.spectrum, self.plane], self.samples)

    def offered(self, choices: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Of train splits there are the raw features of the first seed."""
        is_train = choices.get("split", self._controls["split"].value) == "train"
        return {name: options[:1] if is_train else options for name, options in self._all_options.items()}

    def redraw(self, changed: Set[str]) -> None:
        """Draw the figures anew unless only what the samples depend on has changed."""
        if changed - {"direction", "network"}:
            self._draw_spectra()
        if changed & {"direction", "network", "task", "objective"}:
            self._draw_samples()

    def static(self) -> go.Figure:
        """All tasks and methods of the chosen objective and quantity, with a menu and a slider of the figure's own."""
        objective, quantity = self.view["objective"], self.view["quantity"]
        title = f"Spectra of the features that a head's classifier reads, {objective} pre-training, by task"
        return spectrum_page(*page_tables(self._spectra, objective, quantity), quantity=quantity, title=title)

    def _draw_spectra(self) -> None:
        """Spectra of test splits are at hand; those of train splits are read or made (some seconds)."""
        view = self.view
        if view["split"] == "train":
            chosen = train_spectra(self._results, view["objective"], view["task"])
        else:
            chosen = self._spectra[view["objective"], view["task"], view["method"]]
        seed = None if view["seed"] == _ALL_SEEDS else view["seed"]
        bands, points = quantity_bands(chosen, view["quantity"], seed=seed), spectral_points(chosen, seed=seed)
        means = points.groupby("ratio")[["sve", "lsvr"]].mean().reset_index()
        features = f"{view['split']}, {_FEATURES.get(view['method'], view['method'])}"
        look = {name: view[name] for name in ("quantity", "scale", "window")}
        look["title"] = f"{view['task']}, {features}: {spectral_finding(means)}"
        ratios, between = view["ratios"], view["between"]
        self.spectrum.show(spectrum_view(_at_ratios(bands, ratios), at_any_ratio(bands, between), **look))
        self.plane.show(spectral_plane(_at_ratios(points, ratios), at_any_ratio(means, between)))

    def _draw_samples(self) -> None:
        """The test samples that load most on the chosen direction of the chosen network's features."""
        view = self.view
        task, loadings = tested_loadings(self._results, view["objective"], view["network"], view["task"])
        index = min(view["direction"], loadings.shape[1])
        rows, captions, separation = described_direction(loadings, index, task.labels, task.class_names, _SAMPLES)
        heading = (
            f"Direction {index} of the raw features at {ratio_label(view['network'])} noise, first seed, test split: "
            f"{separation}. The samples that load most on it, of {len(task)}:"
        )
        self.samples.value = gallery_html(task.inputs(rows), captions, heading)

    def _hovered(self, point: Point) -> None:
        """The index under the pointer becomes the direction, the line's ratio the network."""
        by_label = dict(self._controls["network"].options)
        if point.trace.legendgroup in by_label:
            self.choose(direction=int(point.x), network=by_label[point.trace.legendgroup])


def _at_ratios(table: pd.DataFrame, ratios: Sequence[float | str]) -> pd.DataFrame:
    chosen = ratios or [table["ratio"].min()]
    return table[table["ratio"].isin(chosen) | (table["ratio"].isna() & (RANDOM_INIT in chosen))]
