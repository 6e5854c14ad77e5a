"""The playground of terms: NMTune refitted with any λ and terms, beside LP and MLP fitted alike."""

import html
from collections.abc import Mapping, Sequence, Set
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go

from nml_kit.features import Features
from nml_kit.inference import ratio_label, ratios_in_order
from nml_kit.plots import head_accuracy, head_spectra, weight_page
from nml_kit.study import StudyResults, load_profile, whole_features
from nml_kit.widgets import trials
from nml_kit.widgets.explorer import Card, Explorer

_NONE = "none"
_WEIGHTS = (0.001, 0.01, 0.1, 1.0, 10.0)  # of the static page


class TermPlayground(Explorer):
    """NMTune on a frozen network of `results`, refitted at each choice: accuracy and spectrum beside LP and MLP.

    `view` holds objective, ratio, task, held_out (a domain for the OOD accuracy, or "none"), log_weight (log₁₀ λ), and
    whether the loss has each of the terms MSE, COV and SVD. Without any it is MLP.
    """

    def __init__(self, results: StudyResults) -> None:
        self._results, self._recipe = results, load_profile(results.profile).head_recipe
        held_out = results.rows[results.rows["protocol"] == "OOD"].groupby("task")["test_domain"].unique()
        tasks = sorted(results.rows["task"].unique())
        self._domains = {task: tuple(sorted(held_out.get(task, ()))) for task in tasks}
        ratios = [ratio for ratio in ratios_in_order(results.rows) if not np.isnan(ratio)]
        pick, objectives = ipywidgets.Dropdown, sorted(results.rows["objective"].unique())
        controls = {
            "objective": pick(options=objectives, value=objectives[-1], description="pre-training"),
            "ratio": pick(options=[(ratio_label(r), r) for r in ratios], value=ratios[-1], description="noise"),
            "task": pick(options=list(self._domains), description="task"),
            "held_out": pick(options=[_NONE], description="held out"),
            "log_weight": ipywidgets.FloatSlider(
                min=-4, max=1, step=0.25, value=-2, description="log₁₀ λ", continuous_update=False
            ),
            **{term: ipywidgets.Checkbox(value=True, description=term, indent=False) for term in trials.TERMS},
        }
        self.accuracy, self.spectra, self.text = Card(480), Card(560), ipywidgets.HTML()
        super().__init__(controls, [self.accuracy, self.spectra], self.text)

    def offered(self, choices: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """The domains are those of the task."""
        task = choices.get("task", self._controls["task"].value)
        return {"held_out": (_NONE, *self._domains[task])} if task in self._domains else {}

    def redraw(self, changed: Set[str]) -> None:
        """Fit NMTune anew; LP and MLP are fitted once for a network and task."""
        view, (features, held_out, epochs) = self.view, self._setting()
        terms = [term for term in trials.TERMS if view[term]]
        head = trials.nmtune_head(10 ** view["log_weight"], terms, recipe=self._recipe, epochs=epochs)
        trial = trials.try_heads(features, held_out, {"NMTune": head})
        both = trials.joined(trials.baseline_trial(features, held_out, recipe=self._recipe, epochs=epochs), trial)
        scores, metrics = trials.trial_accuracy(both), trials.trial_metrics(both)
        self.accuracy.show(head_accuracy(scores, title=trials.scores_in_words(scores)))
        self.spectra.show(head_spectra(both.spectra, metrics, title=trials.spectra_in_words(metrics)))
        loss = " + ".join(["CE", *(f"{10 ** view['log_weight']:.3g} · {term}" for term in terms)])
        words = (
            f"Loss {loss}. NMTune was fitted in {trial.seconds:.1f} s, {epochs} epochs of "
            f"{(features.splits == 'train').sum():,} samples, as many as LP and MLP. "
            f"{trials.differences_in_words(both)}."
        )
        self.text.value = f'<p style="line-height:1.4">{html.escape(words)}</p>'

    def static(self) -> go.Figure:
        """Accuracy and SVE of NMTune over a grid of λ for all terms and each alone, fitted now: some ten seconds."""
        features, held_out, epochs = self._setting()
        grid = trials.weight_grid(features, held_out, recipe=self._recipe, epochs=epochs, weights=_WEIGHTS)
        place = " · ".join(filter(None, [self.view["task"], held_out]))
        place = f"{place}, {self.view['objective']}, {ratio_label(self.view['ratio'])} noise"
        return weight_page(grid, title=f"{place}. {trials.grid_finding(grid)}")

    def _setting(self) -> tuple[Features, str, int]:
        held_out = "" if self.view["held_out"] == _NONE else self.view["held_out"]
        features = whole_features(self._results, self.view["objective"], self.view["ratio"], self.view["task"])
        return features, held_out, trials.quick_epochs(int((features.splits == "train").sum()))
