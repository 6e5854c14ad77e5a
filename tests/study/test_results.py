"""Tables of many runs come back as one study wrote them, once, and damaged files are refused."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import DataFileError, InvalidInputError
from nml_kit.inference import judge_claims
from nml_kit.study import RESULT_COLUMNS, load_profile, read_run_tables, write_results
from nml_kit.study.results import SAMPLE_COLUMNS
from nml_kit.study.run import recipe_hash
from tests.inference.test_claims import simulate


@pytest.fixture
def study():
    rows, samples = simulate(samples=30, seeds=3)
    texts = dict.fromkeys(set(RESULT_COLUMNS) - set(rows), "x")
    rows = rows.assign(**texts | {"profile": "small", "fraction": 1.0, "label_noise": 0.0})[list(RESULT_COLUMNS)]
    identity = {name: texts[name] for name in ("recipe", "noise", "backbone", "train_domain")}
    answers = {"label": 1, "prediction": samples["correct"].astype(int)}
    return rows, samples.assign(profile="small", **identity, **answers)


def test_what_several_notebooks_wrote_of_one_study_is_there_once(study, tmp_path):
    rows, samples = study
    write_results(tmp_path / "a", rows=rows.assign(experiment="00"))
    write_results(tmp_path / "b" / "c", rows=rows[rows["method"] == "LP"].assign(experiment="01", version="2"))
    write_results(tmp_path / "d", rows=pd.DataFrame({"requested": [0.1], "flipped": [3]}))
    write_results(tmp_path / "e", rows=rows.assign(profile="demo"), summary=rows)
    write_results(tmp_path / "a", samples=samples)
    write_results(tmp_path / "b", samples=samples.sample(frac=1, random_state=0))
    found_rows, found_samples = read_run_tables(tmp_path, profile="small")
    assert (len(found_rows), len(found_samples)) == (len(rows), len(samples))
    assert set(found_rows["profile"]) == {"small"}
    assert tuple(found_samples.columns) == SAMPLE_COLUMNS
    pd.testing.assert_frame_equal(judge_claims(found_rows, found_samples), judge_claims(rows, samples))


def test_the_random_baseline_stays(study, tmp_path):
    rows, samples = (table[table["ratio"] == 0.1] for table in study)
    write_results(tmp_path, rows=rows.assign(ratio=np.nan))
    write_results(tmp_path, samples=samples.assign(ratio=np.nan))
    found = read_run_tables(tmp_path, profile="small")
    assert [len(table) for table in found] == [len(rows), len(samples)]
    assert all(table["ratio"].isna().all() for table in found)


def test_results_that_differ_stay_two_and_are_refused(study, tmp_path):
    rows, samples = study
    write_results(tmp_path / "a", rows=rows)
    write_results(tmp_path / "b", rows=rows.assign(value=rows["value"] + 0.1))
    write_results(tmp_path, samples=samples)
    with pytest.raises(InvalidInputError, match="occurs 2 times; judge results of one study"):
        judge_claims(*read_run_tables(tmp_path, profile="small"))


def test_results_of_another_recipe_or_kind_of_noise_are_left_out_or_refused(study, tmp_path):
    rows, samples = study
    own = {"recipe": recipe_hash(load_profile("small"), "supervised"), "noise": "uniform"}
    write_results(tmp_path / "a", rows=rows.assign(**own), samples=samples.assign(**own))
    write_results(tmp_path / "b", rows=rows.assign(recipe="longer"), samples=samples.assign(recipe="longer", noise="x"))
    found = read_run_tables(tmp_path, profile="small")
    assert [len(table) for table in found] == [len(rows), len(samples)]
    assert all(set(table["recipe"]) == {own["recipe"]} for table in found)
    both = pd.concat([rows.assign(recipe="longer"), rows])
    with pytest.raises(InvalidInputError, match="of one recipe, got longer, x"):
        judge_claims(both, samples)


def test_missing_and_damaged_results_are_named(study, tmp_path):
    rows, samples = study
    with pytest.raises(InvalidInputError, match=r"profile 'small' in files rows\.parquet .* none of any profile"):
        read_run_tables(tmp_path / "nowhere", profile="small")
    write_results(tmp_path, rows=rows)
    with pytest.raises(InvalidInputError, match=r"profile 'demo' .* found small"):
        read_run_tables(tmp_path, profile="demo")
    with pytest.raises(InvalidInputError, match=r"files samples\.parquet"):
        read_run_tables(tmp_path, profile="small")
    [path] = write_results(tmp_path, samples=samples)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFileError, match="Expected a Parquet file"):
        read_run_tables(tmp_path, profile="small")
    write_results(tmp_path, samples=samples.assign(correct="perhaps"))
    with pytest.raises(DataFileError, match="Expected results in"):
        read_run_tables(tmp_path, profile="small")
    write_results(tmp_path, samples=samples.assign(sample=None))
    with pytest.raises(DataFileError, match="no empty cells"):
        read_run_tables(tmp_path, profile="small")
