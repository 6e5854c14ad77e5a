"""The notebook of noise kinds: its rows and sentences against the studies of the same store."""

import numpy as np
import pytest

from nml_kit.inference import change_in_words, paired_differences
from nml_kit.store import Store
from nml_kit.study import label_noise, load_profile, pretraining_task, run_kinds, sve_changes, variant_rows
from tests.one_notebook import SMALLEST, NotebookRun, run_notebook

pytestmark = [pytest.mark.xdist_group("notebook-10"), pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, smoke_home) -> NotebookRun:
    return run_notebook("10_noise_kinds", tmp_path_factory.mktemp("nb10"), smoke_home, profile=SMALLEST)


def test_rows_and_sentences_are_those_of_the_studies(run, smoke_home):
    run.check_page(figures=3)
    studies = run_kinds(load_profile(SMALLEST), store=Store(smoke_home), progress=False)
    rows = run.table()
    assert (
        rows.groupby("kind", sort=False)["value"].agg(list).to_dict()
        == variant_rows(studies).groupby("variant")["value"].agg(list).to_dict()
    )
    sve = sve_changes(studies)
    for kind, study in studies.items():
        drops = paired_differences(study.samples, "ratio", 0.0, ["protocol"]).set_index("protocol")
        words = [change_in_words(*drops.loc[protocol, ["mean", "low", "high"]]) for protocol in ("ID", "OOD")]
        rising = int((sve[sve["variant"] == kind]["mean"] > 0).sum())
        assert f"{kind}: ID accuracy {words[0]}, OOD accuracy {words[1]}, SVE rises on {rising} of 2" in run.said


def test_the_most_confused_pair_is_named(run):
    profile = load_profile(SMALLEST).model_copy(update={"noise": "confusion"})
    task = pretraining_task(profile)
    noise = label_noise(profile, task, 0.3, 0)
    pairs, counts = np.unique(np.stack([noise.clean, noise.noisy])[:, noise.mask], axis=1, return_counts=True)
    given, became = (task.class_names[label] for label in pairs[:, counts.argmax()])
    assert f"“{given}” most often becomes “{became}”: {counts.max()} of its" in run.titles[0]
