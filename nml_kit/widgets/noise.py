"""The noise gallery: what was flipped into what, and what the network is told of which training image."""

from collections.abc import Set
from typing import get_args

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from nml_kit.errors import InvalidInputError
from nml_kit.inference import ratio_label
from nml_kit.plots import as_text, transition_matrix, transition_page
from nml_kit.study import (
    NoiseKind,
    Objective,
    Profile,
    described_changes,
    noise_finding,
    noisy_samples,
    pretraining_task,
)
from nml_kit.widgets.explorer import Card, Explorer, gallery_html
from nml_kit.widgets.view import Point

_EVERY = "every class"
_SAMPLES = 24  # shown of what changed
_OTHER_RATIOS = tuple(percent / 100 for percent in range(1, 51))


class NoiseGallery(Explorer):
    """What noise does to the pre-training task of a `profile`: a transition matrix, and the images it mislabels.

    Click a row of the matrix to see that class. `view` holds objective, kind (of label noise), ratio, seed and
    own_class (by name, or "every class"). Raises InvalidInputError if the task has no images.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile, self._task = profile, pretraining_task(profile)
        if self._task.image_data is None:
            raise InvalidInputError(f"Expected a pre-training task with images, got the texts of {self._task.name!r}.")
        self._train = self._task.select(split="train")
        pick = ipywidgets.Dropdown
        ratios = [(ratio_label(ratio), ratio) for ratio in sorted({*self._noisy_ratios(), *_OTHER_RATIOS})]
        controls = {
            "objective": pick(options=get_args(Objective), description="pre-training"),
            "kind": pick(options=get_args(NoiseKind), value=profile.noise, description="label noise"),
            "ratio": ipywidgets.SelectionSlider(
                options=ratios, value=self._noisy_ratios()[-1], description="ratio", continuous_update=False
            ),
            "seed": ipywidgets.BoundedIntText(
                min=0, max=max(9999, *profile.seeds), value=profile.seeds[0], description="seed"
            ),
            "own_class": pick(options=[_EVERY, *self._task.class_names], description="own class"),
        }
        self.matrix, self.samples = Card(640), ipywidgets.HTML()
        self.matrix.view.on("click", self._clicked)
        super().__init__(controls, [self.matrix], self.samples)

    def redraw(self, changed: Set[str]) -> None:
        """Draw the gallery anew, and the matrix unless only the class has changed."""
        if changed - {"own_class"}:
            self._controls["kind"].disabled = self.view["objective"] == "contrastive"
            self._table = self._samples_at(self.view["ratio"])
            counts, title = self._matrix(self._table)
            self.matrix.show(transition_matrix(counts, self._task.class_names, title=title))
        self.samples.value = self._gallery()

    def static(self) -> go.Figure:
        """The matrix of the chosen objective, kind and seed with a slider over the profile's ratios."""
        matrices = {ratio: self._matrix(self._samples_at(ratio)) for ratio in self._noisy_ratios()}
        return transition_page(matrices, self._task.class_names)

    def _noisy_ratios(self) -> list[float]:
        return sorted({ratio for ratio in self._profile.ratios if ratio > 0}) or [_OTHER_RATIOS[-1]]

    def _samples_at(self, ratio: float) -> pd.DataFrame:
        chosen = {name: self.view[name] for name in ("objective", "kind", "seed")}
        return noisy_samples(self._profile, self._task, ratio, **chosen)

    def _matrix(self, table: pd.DataFrame) -> tuple[NDArray[np.int64], str]:
        counts = confusion_matrix(table["own"], table["given"], labels=range(self._task.num_classes))
        noise = f"{self.view['kind']} noise".capitalize() if self.view["objective"] == "supervised" else "Exchange"
        return counts, f"{noise}: {noise_finding(table, self.view['objective'])}"

    def _clicked(self, point: Point) -> None:
        """The row of the cell under the pointer becomes the class."""
        names = {as_text(name): name for name in self._task.class_names}
        if point.y in names:
            self.choose(own_class=names[point.y])

    def _gallery(self) -> str:
        view, names = self.view, self._task.class_names
        own = None if view["own_class"] == _EVERY else names.index(view["own_class"])
        rows, captions, heading = described_changes(self._table, names, view["objective"], own_class=own, most=_SAMPLES)
        return gallery_html(self._train.inputs(rows), captions, heading)
