"""The notebook on zero-shot use, run in the profile of seconds: its numbers against those of the package's parts."""

import pytest

from nml_kit.origins import Origin, pretrained_backbone, pretraining_task
from nml_kit.pretraining_study import zero_shot_samples
from nml_kit.profiles import load_profile
from nml_kit.store import Store
from nml_kit.zero_shot import zero_shot_predictions
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-06"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> NotebookRun:
    return run_notebook("06_zero_shot", tmp_path_factory.mktemp("nb06"))


def test_accuracies_and_margins_are_those_of_the_predictions(run):
    run.check_page(figures=2)
    profile, store = load_profile("smoke"), Store(run.home)
    task = pretraining_task(profile)
    backbone = pretrained_backbone(profile, task, Origin(0.3, 0, "contrastive"), store=store)
    right = zero_shot_predictions(backbone, task.select(split="test"), store=store)["correct"].mean()
    rows = run.table().query("task == @task.name and direction == 'image→class' and ratio == 0.3")
    assert rows["mean"].tolist() == pytest.approx([right])
    assert rows["chance"].tolist() == pytest.approx([1 / task.num_classes])
    assert f"{task.name} at 30 %: {right - 1 / task.num_classes:+.3f} [" in run.said


def test_margin_is_called_above_chance_only_if_its_interval_is(run):
    samples = zero_shot_samples(load_profile("smoke"), store=Store(run.home))
    tasks = samples.loc[samples["ratio"].notna(), "task"].nunique()
    assert f"of {tasks} tasks" in run.titles[0]
    for sentence in run.said.split("accuracy minus chance: ")[1].split("\n")[0].split("; "):
        low = float(sentence.split("[")[1].split(",")[0])
        assert ("above chance" in sentence) == (low > 0), sentence
