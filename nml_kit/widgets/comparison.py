"""The noise-ratio comparison: two ratios or methods side by side, from tasks to classes to single samples."""

from collections.abc import Set
from functools import partial
from typing import Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from nml_kit.plots import as_text, comparison_page, confusion_changes
from nml_kit.study import ResultKey, StudyResults, comparison
from nml_kit.widgets.explorer import Card, Explorer, gallery_html
from nml_kit.widgets.view import Point
from nml_kit.widgets.views import EVERY_CLASS, accuracies_of_pair, lost_gallery, pair_of_spectra, task_of_panel


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
        first = next(iter(self._answers.values()))
        pick = ipywidgets.Dropdown
        controls = {
            "objective": pick(options=objectives, value=objectives[-1], description="pre-training"),
            "task": pick(options=sorted(first["panel"].unique()), description="task"),
            "given": pick(options=[EVERY_CLASS], description="class"),
            "said": pick(options=[EVERY_CLASS], description="taken for"),
            "first": pick(options=noises, description="first: noise"),
            "first_method": pick(options=methods, description="head"),
            "second": pick(options=noises, value=noises[-2:][0], description="second: noise"),
            "second_method": pick(options=methods, description="head"),
        }
        self.cards, self.samples = {"task": Card(480), "given": Card(480), "said": Card(560)}, ipywidgets.HTML()
        self.spectra = Card(480)
        for choice in ("task", "given"):
            self.cards[choice].view.on("click", partial(self._row_clicked, choice))
        self.cards["said"].view.on("click", self._confusion_clicked)
        super().__init__(controls, [*self.cards.values(), self.spectra], self.samples)

    def offer(self, choices: Any) -> None:
        """The classes are those of the task."""
        names = task_of_panel(choices.get("task", self._controls["task"].value)).class_names
        for name in ("given", "said"):
            if self._controls[name].options != (EVERY_CLASS, *names):
                self._controls[name].options = (EVERY_CLASS, *names)

    def redraw(self, changed: Set[str]) -> None:
        """Draw what depends on what changed."""
        view, names = self.view, task_of_panel(self.view["task"]).class_names
        first, second = (comparison.answers_of(self._answers, key) for key in self._keys())
        if changed - {"given", "said"}:
            self._draw_rows("task", comparison.task_changes(first, second), "tasks")
        first, second = (part[part["panel"] == view["task"]] for part in (first, second))
        if changed - {"said"}:
            self._draw_rows("given", comparison.class_changes(first, second, names), f"classes of {view['task']}")
        if changed - {"given", "said"}:
            self.spectra.show(pair_of_spectra(self._keys(), view["task"], self._spectra, self._metrics))
            change = comparison.confusion_change(first, second, len(names))
            self.cards["said"].show(confusion_changes(change, names, title="Which classes are taken for which more"))
        lost = comparison.changed_samples(first, second)
        self.samples.value = gallery_html(*lost_gallery(lost, view))

    def static(self) -> go.Figure:
        """Tasks, and classes of the chosen task, with a menu of what the first result is set against."""
        task, (first, second) = self.view["task"], self._keys()
        alike = [key for key in self._answers if key.method == second.method]
        others = dict.fromkeys([second, *alike, *self._answers])
        pairs = comparison.changes_from(first, others, self._answers, task, task_of_panel(task).class_names)
        return comparison_page(pairs, title=f"What changes, by task and by class of {task}: choose a pair")

    def _keys(self) -> list[ResultKey]:
        view = self.view
        return [ResultKey(view["objective"], view[side], view[f"{side}_method"]) for side in ("first", "second")]

    def _draw_rows(self, choice: str, changes: pd.DataFrame, what: str) -> None:
        self.cards[choice].show(accuracies_of_pair(self._keys(), changes, what, chosen=self.view[choice]))

    def _row_clicked(self, choice: str, point: Point) -> None:
        if point.trace.customdata is not None:
            self.choose(**{choice: str(point.trace.customdata[point.index])})

    def _confusion_clicked(self, point: Point) -> None:
        names = {as_text(name): name for name in task_of_panel(self.view["task"]).class_names}
        self.choose(given=names[point.y], said=names[point.x])
