"""The notebook of runtimes: what it says against the repeats that it wrote, and sizes against the layers."""

import pytest

from nml_kit.store import Store
from nml_kit.study import (
    HEADS,
    Origin,
    backbone_parameters,
    costs,
    load_profile,
    pretrained_backbone,
    pretraining_task,
    two_digits,
)
from tests.one_notebook import NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-15"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook("15_runtime", tmp_path_factory.mktemp("nb15"), smoke_home, objective="contrastive", repeats=2)


def test_titles_and_sentences_are_those_of_the_repeats(run):
    run.check_page(figures=2)
    seconds, profile = run.table("runtime"), load_profile("smoke")
    assert set(seconds["method"]) == set(HEADS)
    assert set(seconds["task"]) == set(profile.downstream.id)
    assert set(seconds["repeat"]) == {1, 2}
    fits = costs(seconds).query("step == 'fit'").groupby(["quantity", "method"])["median"].agg(["min", "max"])
    for (quantity, method), (low, high) in fits.iterrows():
        place, unit = (0, "s") if quantity == "seconds" else (1, "times")
        assert (f"{method} {two_digits(low)} to {two_digits(high)} {unit}" in run.titles[place]) == (
            (quantity, method) != ("ratio to LP", "LP")
        )
    assert "Measured** on one thread of " in run.said


def test_rows_hold_sizes_and_no_seconds(run, smoke_home):
    rows, profile = run.table(), load_profile("smoke")
    assert len(rows) == len(HEADS) * len(profile.downstream.id)
    assert not {"seconds", "repeat"} & set(rows.columns)
    D = rows["features"]
    linear = D * rows["classes"] + rows["classes"]
    hidden = rows["method"].isin(["MLP", "NMTune"])
    assert (rows["parameters"] == linear + hidden * 2 * (D * D + D)).all()
    assert set(zip(rows["ratio"], rows["seed"], rows["objective"], strict=True)) == {(0.0, 0, "contrastive")}
    backbone = pretrained_backbone(
        profile, pretraining_task(profile), Origin(0.0, 0, "contrastive"), store=Store(smoke_home), progress=False
    )
    assert f"the backbone has {backbone_parameters(backbone):,d} parameters" in run.said


def test_images_and_spectra_are_written_for_every_repeat(run):
    images, spectra = run.table("image_runtime"), run.table("spectrum_runtime")
    assert sorted(zip(images["step"], images["repeat"], strict=True)) == [
        (step, repeat) for step in ("extraction", "pre-training") for repeat in (1, 2)
    ]
    assert spectra.groupby("task").size().to_dict() == dict.fromkeys(load_profile("smoke").downstream.id, 2 * 2)
    assert (images["seconds"] > 0).all() and (spectra["seconds"] > 0).all()  # noqa: PT018
