"""Two results side by side, against counts made by hand."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import InvalidInputError
from nml_kit.study import ResultKey, largest_changes
from nml_kit.study.comparison import (
    answers_by_result,
    answers_of,
    changed_samples,
    changes_from,
    changes_in_words,
    class_changes,
    confusion_change,
    sample_captions,
    task_changes,
)

NAMES = ("cat", "dog", "owl")
CLEAN, NOISY = ResultKey("supervised", "0 %", "LP"), ResultKey("supervised", "30 %", "LP")


@pytest.fixture
def answers():
    """Predictions drawn at random: two tasks, two ratios, three seeds, 40 samples each; and one random network."""
    generator, frames = np.random.default_rng(0), []
    for task in ("a", "b"):
        labels = generator.integers(0, 3, 40)
        for ratio, seed in [(np.nan, 0), *((r, s) for r in (0.3, 0.0) for s in range(3))]:
            said = np.where(generator.random(40) < (0.8 if ratio == 0 else 0.5), labels, generator.integers(0, 3, 40))
            frames.append(pd.DataFrame({
                "objective": "supervised", "task": task, "protocol": "ID", "method": "LP", "ratio": ratio, "seed": seed,
                "sample": [f"{task}{n:02}" for n in range(40)], "label": labels, "prediction": said,
                "correct": said == labels,
            }))  # fmt: skip
    return answers_by_result(pd.concat(frames, ignore_index=True))


@pytest.fixture
def pair(answers):
    return tuple(part[part["panel"] == "ID · b"] for part in (answers[CLEAN], answers[NOISY]))


def test_results_are_in_the_order_of_their_ratios(answers):
    assert [key.noise for key in answers] == ["0 %", "30 %", "random init"]
    with pytest.raises(InvalidInputError, match="there are supervised, 0 %, LP; supervised, 30 %, LP"):
        answers_of(answers, CLEAN._replace(noise="20 %"))


def test_tasks_change_by_the_difference_of_their_means(answers):
    changes = task_changes(answers[CLEAN], answers[NOISY])
    assert changes["name"].tolist() == sorted(changes["name"], key=dict(changes[["name", "change"]].to_numpy()).get)
    for row in changes.itertuples():
        for side, key in ((row.first, CLEAN), (row.second, NOISY)):
            assert side == pytest.approx(answers[key].query("panel == @row.name")["correct"].mean())
    assert changes["n"].tolist() == [40, 40]


def test_classes_change_as_a_loop_finds(pair):
    for row in class_changes(*pair, NAMES).itertuples():
        of_class = [part[part["label"] == NAMES.index(row.name)] for part in pair]
        assert row.first == pytest.approx(of_class[0]["correct"].mean())
        assert row.change == pytest.approx(of_class[1]["correct"].mean() - of_class[0]["correct"].mean())
        assert row.n == of_class[0]["sample"].nunique()


def test_confusions_change_as_a_loop_finds_and_rows_sum_to_zero(pair):
    change = confusion_change(*pair, 3)
    for given in range(3):
        for said in range(3):
            before, after = (part[part["label"] == given]["prediction"].eq(said).mean() for part in pair)
            assert change[given, said] == pytest.approx(after - before)
    np.testing.assert_allclose(change.sum(axis=1), 0, atol=1e-12)
    assert (confusion_change(*pair, 4)[3] == 0).all()


def test_changed_samples_are_those_that_lose(pair):
    lost = changed_samples(*pair)
    first, second = (part.groupby("sample")["correct"].mean() for part in pair)
    assert set(lost["sample"]) == set(first.index[second < first])
    assert (np.diff((lost["first"] - lost["second"]).round(9)) <= 0).all()
    for row in lost.itertuples():
        wrong = pair[1].query("sample == @row.sample and not correct")["prediction"].value_counts()
        assert wrong[row.prediction] == wrong.max()
        assert row.prediction != row.label
    assert changed_samples(pair[0], pair[0]).empty


def test_the_largest_changes_go_either_way():
    changes = pd.DataFrame({"name": list("abcd"), "change": [-0.5, 0.4, 0.1, -0.2]})
    assert largest_changes(changes, 2)["name"].tolist() == ["a", "b"]
    assert changes_in_words(changes, "tasks").startswith(
        "2 of 4 tasks lose accuracy, mean change -0.050; most: a -0.500"
    )


def test_each_other_result_of_the_objective_is_paired(answers):
    pairs = changes_from(CLEAN, answers, answers, "ID · a", NAMES)
    assert list(pairs) == ["LP, 0 % → LP, 30 %", "LP, 0 % → LP, random init"]
    pd.testing.assert_frame_equal(pairs["LP, 0 % → LP, 30 %"][0], task_changes(answers[CLEAN], answers[NOISY]))


def test_captions_say_class_confusion_and_domain():
    lost = pd.DataFrame({"label": [0], "prediction": [2], "first": [1.0], "second": [0.2]})
    assert sample_captions(lost, ["ink"], NAMES) == ["cat → owl, ink: right in 100% → 20% of seeds"]
