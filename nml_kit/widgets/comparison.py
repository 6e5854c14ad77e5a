"""The noise-ratio comparison: two ratios or methods side by side, from tasks to classes to single samples."""

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache, partial
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nml_kit.data import Task, load_task
from nml_kit.plots import (
    MOST_CLASSES,
    as_text,
    comparison_page,
    confusion_changes,
    paired_accuracies,
    paired_spectra,
    spectral_finding,
)
from nml_kit.study import ResultKey, StudyResults, comparison
from nml_kit.widgets.explorer import Card, Explorer, gallery_html
from nml_kit.widgets.view import Point

_EVERY_CLASS = "every class"
_SAMPLES = 16  # shown of those that are lost


class NoiseComparison(Explorer):
    """Accuracy by task and class, confusions, spectra and lost samples of a second result against a first, all linked.

    `results` come from `load_results`. Choosing a task, class or confusion, by its control or a click in a figure,
    filters what follows. `view` holds objective, first and second (noise), first_method, second_method, task, given
    and said (classes by name, or "every class").
    """

    def __init__(self, results: StudyResults) -> None:
        self._spectra = comparison.spectra_by_result(results.spectra)
        self._metrics = comparison.spectral_means(results.rows)
        self._answers = comparison.answers_by_result(results.samples)
        objectives, noises, methods = (list(dict.fromkeys(names)) for names in zip(*self._answers, strict=True))
        tasks = sorted(next(iter(self._answers.values()))["panel"].unique())
        pick = ipywidgets.Dropdown
        controls = {
            "objective": pick(options=objectives, value=objectives[-1], description="pre-training"),
            "task": pick(options=tasks, description="task"),
            "given": pick(options=[_EVERY_CLASS], description="class"),
            "said": pick(options=[_EVERY_CLASS], description="taken for"),
            "first": pick(options=noises, description="first: noise"),
            "first_method": pick(options=methods, description="first: head"),
            "second": pick(options=noises, value=noises[-2:][0], description="second: noise"),
            "second_method": pick(options=methods, description="second: head"),
        }
        self.cards, self.samples = {"task": Card(480), "given": Card(480), "said": Card(560)}, ipywidgets.HTML()
        self.spectra = Card(480)
        for choice in ("task", "given"):
            self.cards[choice].view.on("click", partial(self._row_clicked, choice))
        self.cards["said"].view.on("click", self._confusion_clicked)
        super().__init__(controls, [*self.cards.values(), self.spectra], self.samples)

    def offered(self, choices: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The classes are those of the task."""
        classes = _task(choices.get("task", self._controls["task"].value)).class_names
        return dict.fromkeys(("given", "said"), (_EVERY_CLASS, *classes))

    def redraw(self, changed: Set[str]) -> None:
        """Draw what depends on what changed."""
        panel, classes = self.view["task"], _task(self.view["task"]).class_names
        first, second = (comparison.answers_of(self._answers, key) for key in self._keys())
        if changed - {"given", "said"}:
            self._draw_rows("task", comparison.task_changes(first, second), "tasks")
        first, second = (part[part["panel"] == panel] for part in (first, second))
        if changed - {"said"}:
            self._draw_rows("given", comparison.class_changes(first, second, classes), f"classes of {panel}")
        if changed - {"given", "said"}:
            self._draw_spectra(panel)
            change = comparison.confusion_change(first, second, len(classes))
            self.cards["said"].show(confusion_changes(change, classes, title="Which classes are taken for which more"))
        self._draw_samples(comparison.changed_samples(first, second))

    def static(self) -> go.Figure:
        """Tasks, and classes of the chosen task, with a menu of what the first result is set against."""
        task, (first, second) = self.view["task"], self._keys()
        alike = [key for key in self._answers if key.method == second.method]
        others = dict.fromkeys([second, *alike, *self._answers])
        pairs = comparison.changes_from(first, others, self._answers, task, _task(task).class_names)
        return comparison_page(pairs, title=f"What changes, by task and by class of {task}: choose a pair")

    def _keys(self) -> list[ResultKey]:
        view = self.view
        return [ResultKey(view["objective"], view[side], view[f"{side}_method"]) for side in ("first", "second")]

    def _draw_rows(self, choice: str, changes: pd.DataFrame, noun: str) -> None:
        names = first, second = [key.name for key in self._keys()]
        title = f"{first} → {second}: {comparison.changes_in_words(changes, noun)}"
        shown = comparison.largest_changes(changes, MOST_CLASSES)
        self.cards[choice].show(paired_accuracies(shown, names, chosen=self.view[choice], title=title))

    def _draw_spectra(self, panel: str) -> None:
        """Of all classes, so that a class or a confusion does not change them."""
        first, second = self._keys()
        means = pd.DataFrame([self._metrics[key, panel] for key in (first, second)]).assign(ratio=[0, 1])
        names = first.name, second.name
        spectra = self._spectra[first, panel], self._spectra[second, panel]
        self.spectra.show(paired_spectra(*spectra, names, title=f"Spectrum of {panel}: {spectral_finding(means)}"))

    def _draw_samples(self, lost: pd.DataFrame) -> None:
        """Those of `lost` that are of the chosen class, and taken for the chosen other."""
        task = _task(self.view["task"])
        for column, choice in (("label", self.view["given"]), ("prediction", self.view["said"])):
            if choice != _EVERY_CLASS:
                lost = lost[lost[column] == task.class_names.index(choice)]
        shown = lost.head(_SAMPLES)
        rows = pd.Series(np.arange(len(task)), index=task.ids).loc[shown["sample"]].to_numpy()
        captions = comparison.sample_captions(shown, task.domains[rows], task.class_names)
        heading = f"{len(lost)} samples are right less often in the second; the {len(shown)} with the largest loss:"
        self.samples.value = gallery_html(task.inputs(rows), captions, heading)

    def _row_clicked(self, choice: str, point: Point) -> None:
        if point.trace.customdata is not None:
            self.choose(**{choice: str(point.trace.customdata[point.index])})

    def _confusion_clicked(self, point: Point) -> None:
        names = {as_text(name): name for name in _task(self.view["task"]).class_names}
        self.choose(given=names[point.y], said=names[point.x])


@lru_cache(maxsize=16)
def _task(panel: str) -> Task:
    """The task of a panel without its domain, such as "OOD · icons": a protocol holds no " · "."""
    return load_task(panel.split(" · ", 1)[1])
