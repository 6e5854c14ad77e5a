import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, norm

from nml_kit.errors import InvalidInputError
from nml_kit.inference import accuracy_intervals, changes_in_words, paired_differences
from nml_kit.inference.intervals import bootstrap_mean


def test_interval_of_one_seed_agrees_with_the_normal_approximation():
    correct = (np.arange(400) % 10 < 7).astype(float)[None]
    mean, low, high = bootstrap_mean([correct], resamples=4000)
    half = norm.ppf(0.975) * np.sqrt(0.7 * 0.3 / 400)
    assert mean == pytest.approx(0.7)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)


def test_interval_of_one_sample_is_that_of_the_seeds_alone():
    accuracies = np.array([0.70, 0.74, 0.71, 0.78, 0.69])
    mean, low, high = bootstrap_mean([accuracies[:, None]], resamples=4000)
    expected = bootstrap([accuracies], np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    assert mean == pytest.approx(accuracies.mean())
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.003)


def test_interval_covers_seeds_as_well_as_samples():
    generator = np.random.default_rng(0)
    same = np.repeat((generator.random((1, 300)) < 0.7).astype(float), 6, axis=0)
    differing = (generator.random((6, 300)) < np.linspace(0.5, 0.9, 6)[:, None]).astype(float)
    (_, low, high), (_, wide_low, wide_high) = bootstrap_mean([same]), bootstrap_mean([differing])
    assert wide_high - wide_low > 1.5 * (high - low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        seeds = generator.normal(0.7, 0.03, size=(12, 1))
        _, low, high = bootstrap_mean([(generator.random((12, 200)) < seeds).astype(float)], resamples=300)
        hits += low <= 0.7 <= high
    # 95 % of 200 is 190; resampling twelve seeds is known to be somewhat too narrow.
    assert 176 <= hits <= 199


def scores(method, ratio, seed, correct, task="t", protocol="ID"):
    samples = [f"s{i}" for i in range(len(correct))]
    return pd.DataFrame({"task": task, "protocol": protocol, "method": method, "ratio": ratio, "seed": seed,
                         "sample": samples, "correct": np.array(correct, dtype=bool)})  # fmt: skip


def test_paired_differences_pair_seed_and_sample():
    generator = np.random.default_rng(0)
    base = generator.random((3, 200)) < 0.6
    better = base.copy()
    better[:, :20] = True
    frames = [scores(m, 0.1, s, c[s]) for m, c in (("LP", base), ("NMTune", better)) for s in range(3)]
    samples = pd.concat(frames).sample(frac=1, random_state=0)
    (row,) = paired_differences(samples, "method", "LP", ["task", "ratio"]).to_dict("records")
    gain = (better.astype(float) - base).mean()
    assert row["mean"] == pytest.approx(gain)
    assert 0 < row["low"] < gain < row["high"]
    unpaired_width = np.sqrt(2 * 0.6 * 0.4 / 200) * 2 * 1.96
    assert row["high"] - row["low"] < unpaired_width / 2


def test_paired_differences_of_ratios_leave_out_the_random_baseline():
    frames = [scores("LP", r, 0, [True, True, False, r != 0.3]) for r in (0.0, 0.3)]
    frames.append(scores("LP", np.nan, 0, [False] * 4))
    result = paired_differences(pd.concat(frames), "ratio", 0.0, ["task", "method"])
    assert result[["ratio", "mean"]].to_numpy().tolist() == [[0.3, -0.25]]


def test_paired_differences_need_the_same_samples_and_a_baseline():
    samples = pd.concat([scores("LP", 0.1, 0, [True, False]), scores("NMTune", 0.1, 0, [True, False, True])])
    with pytest.raises(InvalidInputError, match=r"1 of 3 rows have no partner"):
        paired_differences(samples, "method", "LP", ["task"])
    with pytest.raises(InvalidInputError, match="rows with method = 'MLP' to compare with"):
        paired_differences(samples, "method", "MLP", ["task"])


def test_heads_of_two_sources_are_paired_each_with_its_own():
    right = {
        ("a", "LP"): [True, False],
        ("b", "LP"): [False, False],
        ("a", "MLP"): [True, True],
        ("b", "MLP"): [True, False],
    }
    frames = [scores(method, 0.1, 0, correct, protocol="OOD").assign(train_domain=source)
              for (source, method), correct in right.items()]  # fmt: skip
    result = paired_differences(pd.concat(frames), "method", "LP", ["task"])
    assert result["mean"].tolist() == [0.5]


def test_changes_read_as_a_list_with_labelled_ratios():
    columns = ["protocol", "ratio", "mean", "low", "high"]
    changes = pd.DataFrame([("ID", 0.3, 0.1, 0.05, 0.15), ("OOD", 0.05, 0.0, -0.1, 0.1)], columns=columns)
    assert changes_in_words(changes, "{protocol} at {ratio}: accuracy").splitlines() == [
        "", "", "- ID at 30 %: accuracy rises by 0.100 [0.050, 0.150]",
        "- OOD at 5 %: accuracy shows no clear change (+0.000 [-0.100, +0.100])",
    ]  # fmt: skip


def test_tasks_weigh_equally_in_a_mean():
    samples = pd.concat([scores("LP", 0.1, 0, [True] * 10, "easy"), scores("LP", 0.1, 0, [False] * 1000, "hard")])
    (row,) = accuracy_intervals(samples, ["method", "ratio"]).to_dict("records")
    assert row["mean"] == 0.5
    assert row["n"] == 1010
