"""The spectrum explorer: the singular values of every task, method and noise ratio, by looking."""

from collections.abc import Mapping, Set
from typing import get_args

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from nml_kit.inference import RANDOM_INIT, ratio_label, ratios_in_order
from nml_kit.plots import Scale, spectrum_page
from nml_kit.study import Quantity, StudyResults, page_tables, spectra_by_choice
from nml_kit.widgets.explorer import Card, Explorer, gallery_html
from nml_kit.widgets.view import Point
from nml_kit.widgets.views import ALL_SEEDS, FEATURES, direction_gallery, spectrum_figures


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
            "method": pick(options=[(FEATURES.get(name, name), name) for name in methods], description="features"),
            "quantity": pick(options=get_args(Quantity), description="quantity"),
            "scale": pick(options=get_args(Scale), value="log y", description="scale"),
            "seed": pick(options=[ALL_SEEDS, *seeds], description="seed"),
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
        self._offered = {name: controls[name].options for name in ("method", "seed")}
        self.spectrum, self.plane, self.samples = Card(640), Card(380), ipywidgets.HTML()
        self.spectrum.view.on("hover", self._hovered)
        super().__init__(controls, [self.spectrum, self.plane], self.samples)

    def offer(self, choices: Mapping[str, object]) -> None:
        """Of train splits there are the raw features of the first seed."""
        is_train = choices.get("split", self._controls["split"].value) == "train"
        for name, options in self._offered.items():
            offered = options[:1] if is_train else options
            if self._controls[name].options != offered:
                self._controls[name].options = offered

    def redraw(self, changed: Set[str]) -> None:
        """Draw the figures anew unless only what the samples depend on has changed."""
        if changed - {"direction", "network"}:
            spectrum, plane = spectrum_figures(self._results, self._spectra, self.view)
            self.spectrum.show(spectrum)
            self.plane.show(plane)
        if changed & {"direction", "network", "task", "objective"}:
            self.samples.value = gallery_html(*direction_gallery(self._results, self.view))

    def static(self) -> go.Figure:
        """All tasks and methods of the chosen objective and quantity, with a menu and a slider of the figure's own."""
        objective, quantity = self.view["objective"], self.view["quantity"]
        title = f"Spectra of the features that a head's classifier reads, {objective} pre-training, by task"
        return spectrum_page(*page_tables(self._spectra, objective, quantity), quantity=quantity, title=title)

    def _hovered(self, point: Point) -> None:
        """The index under the pointer becomes the direction, the line's ratio the network."""
        by_label = dict(self._controls["network"].options)
        if point.trace.legendgroup in by_label:
            self.choose(direction=int(point.x), network=by_label[point.trace.legendgroup])
