"""The notebooks of the noise itself and of its kinds."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.inference import changes_in_words, paired_differences
from nml_kit.study import label_noise as noise_of_profile
from nml_kit.study import load_profile, pretraining_task
from tests.one_notebook import SMALLEST

pytestmark = pytest.mark.timeout(400)
KINDS = ("uniform", "asymmetric", "confusion")


def test_the_noise_is_counted_exactly(ran):
    run = ran("01_noise")
    run.check_page(figures=2)
    count = int((pretraining_task(load_profile(SMALLEST)).splits == "train").sum())
    rows = run.table()
    assert rows["requested"].tolist() == [0.0, 0.1, 0.3]
    assert rows["flipped"].tolist() == [int(np.floor(ratio * count + 0.5)) for ratio in (0.0, 0.1, 0.3)]
    assert rows["flipped into their own class"].tolist() == [0, 0, 0]
    assert "nested from each ratio to the next: True, True" in run.said
    assert "the collection of captions is unchanged: True" in run.said


def test_rows_and_sentences_of_each_kind_are_those_of_its_study(ran, study_again):
    run, changes = ran("08_noise_kinds"), []
    run.check_page(figures=3)
    for kind in KINDS:
        study = study_again(methods=["LP"], noise=kind)
        assert run.table().query("kind == @kind")["value"].tolist() == study.rows["value"].tolist()
        changes.append(paired_differences(study.samples, "ratio", 0.0, ["protocol"]).assign(kind=kind))
    assert changes_in_words(pd.concat(changes), "{kind}, {protocol} at {ratio}: accuracy") in run.said
    sve = run.table().query("metric == 'sve' and ratio == ratio")
    means = sve.groupby(["kind", "protocol", "ratio"])["value"].mean().unstack("ratio")
    for kind in KINDS:
        rising = (means.loc[kind, 0.3] > means.loc[kind, 0.0]).sum()
        assert f"{rising} of 2 under {kind} noise" in run.said.split("on which SVE rises")[1]


def test_the_most_confused_pair_is_named(ran):
    profile = load_profile(SMALLEST).model_copy(update={"noise": "confusion"})
    task = pretraining_task(profile)
    noise = noise_of_profile(profile, task, 0.3, 0)
    pairs, counts = np.unique(np.stack([noise.clean, noise.noisy])[:, noise.mask], axis=1, return_counts=True)
    label, became = (task.class_names[number] for number in pairs[:, counts.argmax()])
    assert f"“{label}” most often becomes “{became}”: {counts.max()} of its" in ran("08_noise_kinds").titles[0]
