"""Claims are judged rightly on results of known truth, in all three directions, and seldom wrongly by chance."""

from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, page_trend_test, spearmanr, ttest_1samp

from nml_kit.errors import InvalidInputError
from nml_kit.inference import VERDICT_COLUMNS, judge_claims, registry_table, verdict_counts, verdict_table
from nml_kit.inference.contrasts import MARGIN, SLIGHT_UP_TO
from nml_kit.inference.statistics import holm, paired_estimate, rank_association

RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3)
TASKS = (("a", "ID"), ("b", "ID"), ("c", "OOD"), ("d", "OOD"))


def flat(level: float) -> dict[float, float]:
    return dict.fromkeys(RATIOS, level)


def along(*values: float) -> dict[float, float]:
    return dict(zip(RATIOS, values, strict=True))


def simulate(
    accuracy=None, sve=None, lsvr=None, *, tasks=TASKS, seeds=5, samples=400, spread=0.004, seed=0,
    objective="supervised",
):  # fmt: skip
    """Rows and samples of known truth: each argument maps (protocol, method) to the true value at each ratio.

    A test sample is right where its difficulty, the same for all networks but for a little noise, is below the accuracy
    of the network, which has a deviation per seed and one per seed, ratio and method (standard deviation `spread`).
    """
    generator = np.random.default_rng(seed)
    rows, scores = [], []
    grid = list(product(("LP", "MLP", "NMTune"), RATIOS, range(seeds)))
    networks = pd.DataFrame(grid, columns=["method", "ratio", "seed"])
    names = np.array([f"s{i}" for i in range(samples)], dtype=object)
    for task, protocol in tasks:
        context = networks.assign(objective=objective, task=task, protocol=protocol)
        shared = np.tile(generator.normal(0, 0.02, seeds), len(grid) // seeds)

        def measured(truths, default, protocol=protocol, shared=shared):
            level = [(truths or {}).get((protocol, method), flat(default))[ratio] for method, ratio, _ in grid]
            return np.array(level) + shared + generator.normal(0, spread, len(grid))

        levels = measured(accuracy, 0.6)[:, None] + generator.normal(0, 0.02, (len(grid), samples))
        right = generator.random(samples) < levels
        scores.append(
            context.loc[np.repeat(context.index, samples)].assign(
                sample=np.tile(names, len(grid)), correct=right.ravel(), fraction=1.0, label_noise=0.0
            )
        )
        for (metric, truths, default), domain in product(
            (("sve", sve, 4.0), ("lsvr", lsvr, 2.0)), ("x", "y") if protocol == "OOD" else ("all",)
        ):
            rows.append(context.assign(test_domain=domain, metric=metric, value=measured(truths, default), n=samples))
    return pd.concat(rows, ignore_index=True), pd.concat(scores, ignore_index=True)


def verdicts(claim, contrast, protocol=None, **truth):
    table = judge_claims(*simulate(**truth)).query("claim == @claim")
    table = table[table["contrast"].str.contains(contrast, regex=False)]
    return table if protocol is None else table[table["protocol"] == protocol]


def shifted(values: dict[float, float], by: float) -> dict[float, float]:
    return {ratio: value + by for ratio, value in values.items()}


UP, DOWN = along(0.5, 0.55, 0.6, 0.65, 0.7), along(0.7, 0.65, 0.6, 0.55, 0.5)
HUMP, BOWL = along(0.6, 0.72, 0.68, 0.6, 0.5), along(0.7, 0.55, 0.6, 0.65, 0.7)
FALLING = {("OOD", "LP"): DOWN}
SVE_UP, LSVR_UP = along(4, 4.1, 4.2, 4.3, 4.4), along(2, 2.1, 2.2, 2.3, 2.4)
AS_CLAIMED = {
    "accuracy": {
        ("ID", "LP"): HUMP, ("ID", "MLP"): shifted(HUMP, 0.1), ("ID", "NMTune"): along(0.95, 0.9, 0.88, 0.85, 0.8),
        ("OOD", "LP"): DOWN, ("OOD", "MLP"): shifted(DOWN, 0.1), ("OOD", "NMTune"): flat(0.96),
    },
    "sve": {("ID", "LP"): SVE_UP, ("ID", "MLP"): SVE_UP, ("ID", "NMTune"): flat(4.8)},
    "lsvr": {("OOD", "LP"): LSVR_UP, ("OOD", "MLP"): LSVR_UP, ("OOD", "NMTune"): flat(1.5)},
}  # fmt: skip
AGAINST_ALL_CLAIMS = {
    "accuracy": {
        ("ID", "LP"): BOWL, ("ID", "MLP"): shifted(BOWL, -0.1), ("ID", "NMTune"): along(0.3, 0.4, 0.42, 0.45, 0.48),
        ("OOD", "LP"): UP, ("OOD", "MLP"): shifted(UP, -0.1), ("OOD", "NMTune"): shifted(UP, -0.4),
    },
    "sve": {("ID", "LP"): along(4.4, 4.3, 4.2, 4.1, 4), ("ID", "NMTune"): flat(3), ("ID", "MLP"): flat(4)},
    "lsvr": {("OOD", "LP"): LSVR_UP, ("OOD", "NMTune"): flat(3), ("OOD", "MLP"): flat(2)},
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("truth", "expected"), [(AS_CLAIMED, "supported"), (AGAINST_ALL_CLAIMS, "contradicted")])
def test_large_effects_are_judged_in_their_direction(truth, expected, seed):
    judged = judge_claims(*simulate(**truth, seed=seed)).query("claim != 'C7'")
    either_way = (judged["claim"] == "C4") & judged["contrast"].str.contains("trend")
    assert set(judged["verdict"][~either_way]) == {expected}, judged["why"].tolist()
    assert set(judged["verdict"][either_way]) == {"supported"}


def test_a_trend_of_lsvr_may_fall_as_well():
    falling = {("OOD", "LP"): along(2, 1.9, 1.8, 1.7, 1.6)}
    assert set(verdicts("C4", "trend", lsvr=falling, samples=60)["verdict"]) == {"supported"}


def test_without_effects_nothing_is_decided_and_nothing_is_called_no_effect():
    judged = judge_claims(*simulate())
    assert set(judged["verdict"]) == {"inconclusive"}
    assert judged.loc[judged["p_value"].notna(), "why"].str.contains("not clearly apart from").all()
    counts = verdict_counts(judged).set_index(["claim", "objective"])
    # 2 ID and 2 OOD tasks: (slight, highest) · (4 ratios, trend) · (slight, trend) · (trend, rank) · 3 pairs × 4 tasks
    # + 2 pairs × (2 SVE + 2 LSVR) + 1 · slight; C7: one row for each of five claims.
    assert counts["rows"].tolist() == [4, 10, 4, 4, 21, 2, 5]


def test_a_mean_over_ratios_or_a_trend_that_turns_is_not_supported():
    better = along(0.8, 0.8, 0.8, 0.8, 0.5)
    (why,) = verdicts("C5", "NMTune − LP", "ID", accuracy={("ID", "NMTune"): better}, tasks=[("a", "ID")]).query(
        "metric == 'accuracy'"
    )["why"]
    assert "above 0, but at 30 % it is -0." in why
    turning = {("OOD", "LP"): along(2, 2.3, 2.2, 2.5, 2.6)}
    judged = verdicts("C4", "trend", lsvr=turning)
    assert set(judged["verdict"]) == {"inconclusive"}
    assert judged["why"].str.contains("above 0, but from 5 % to 10 % it is -0.").all()


def test_non_inferiority_is_not_difference():
    same = {("ID", "NMTune"): flat(0.6)}
    judged = verdicts("C6", "0 %", accuracy=same, samples=10_000, spread=0.0005, tasks=[("a", "ID")], seeds=8)
    assert judged["verdict"].tolist() == ["supported"]
    assert judged["low"].item() < 0 < judged["high"].item()
    assert judged["low"].item() > -0.005
    unsure = verdicts("C6", "0 %", accuracy=same, samples=100, tasks=[("a", "ID")])
    assert unsure["verdict"].tolist() == ["inconclusive"]


# --- how often chance alone decides ---------------------------------------------------------------------------------


def false_positive_bound(trials: int, level: float = 0.05) -> int:
    """If each trial is wrong with probability at most `level`, more wrong ones have probability at most 0.1 %."""
    return int(binom.ppf(0.999, trials, level))


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("of_seeds", "of_samples"), [(0, 0), (0, 1), (0.05, 0.3), (0.2, 0), (0.1, 2)])
def test_the_paired_test_keeps_its_level_whatever_varies(seeds, of_seeds, of_samples):
    generator = np.random.default_rng(0)
    p_values, covered = [], 0
    for _ in range(1000):
        block = (
            generator.normal(0, of_seeds, (seeds, 1))
            + generator.normal(0, of_samples, 60)
            + generator.normal(0, 1, (seeds, 60))
        )
        estimate = paired_estimate([block], [1.0])
        p_values.append(estimate.p_value)
        covered += estimate.low <= 0 <= estimate.high
    assert np.sum(np.array(p_values) <= 0.05) <= false_positive_bound(1000)
    assert covered == np.sum(np.array(p_values) > 0.05)


def test_a_t_test_over_seeds_alone_would_not_keep_its_level():
    generator = np.random.default_rng(0)
    wrong = sum(
        ttest_1samp((generator.normal(0, 1, 60) + generator.normal(0, 1, (5, 60))).mean(axis=1), 0).pvalue <= 0.05
        for _ in range(300)
    )
    assert wrong > false_positive_bound(300)


def test_family_wise_error_of_a_whole_judgement_is_at_most_nominal():
    """All nulls true: per claim, the data sets with any verdict at all are at most Binomial(trials, 5 %)."""
    trials = 100
    wrong = dict.fromkeys(registry_table()["id"], 0)
    for seed in range(trials):
        judged = judge_claims(*simulate(samples=40, seeds=3 + seed % 3, seed=seed, tasks=TASKS[::2]))
        for claim in set(judged.loc[judged["verdict"] != "inconclusive", "claim"]):
            wrong[claim] += 1
    assert max(wrong.values()) <= false_positive_bound(trials), wrong


def test_a_large_effect_is_nearly_always_found():
    found = [
        set(verdicts("C2", "− 0 %", accuracy=FALLING, samples=300, seed=seed, tasks=TASKS[2:])["verdict"])
        for seed in range(20)
    ]
    assert sum(one == {"supported"} for one in found) >= 19


# --- the tests against independent computations ---------------------------------------------------------------------


def test_one_value_per_seed_gives_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 7)
    estimate = paired_estimate([values[:, None]], [1.0], null=0.1)
    reference = ttest_1samp(values, 0.1)
    assert estimate.p_value == pytest.approx(reference.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(reference.confidence_interval()))


def test_samples_that_do_not_differ_leave_the_t_test_of_the_seeds():
    values = np.random.default_rng(0).normal(0.3, 1, 6)
    estimate = paired_estimate([np.repeat(values[:, None], 50, axis=1)], [1.0])
    assert estimate.p_value == pytest.approx(ttest_1samp(values, 0).pvalue)


def test_the_p_value_is_the_level_at_which_the_interval_ends_at_the_null():
    generator = np.random.default_rng(0)
    block = 0.3 + generator.normal(0, 0.2, (5, 1)) + generator.normal(0, 1, 80) + generator.normal(0, 1, (5, 80))
    estimate = paired_estimate([block], [1.0])
    assert paired_estimate([block], [1.0], null=estimate.low).p_value == pytest.approx(0.05, rel=1e-6)
    assert paired_estimate([block], [1.0], null=estimate.high).p_value == pytest.approx(0.05, rel=1e-6)
    assert paired_estimate([block], [1.0], null=estimate.effect).p_value == pytest.approx(1.0)


def test_blocks_add_up_with_their_weights():
    generator = np.random.default_rng(0)
    first, second = generator.normal(1, 1, (5, 30)), generator.normal(3, 1, (5, 50))
    estimate = paired_estimate([first, second], [-1.0, 0.5])
    assert estimate.effect == pytest.approx(0.5 * second.mean() - first.mean())
    flipped = paired_estimate([first, second], [1.0, -0.5])
    assert (flipped.low, flipped.high, flipped.p_value) == pytest.approx(
        (-estimate.high, -estimate.low, estimate.p_value)
    )


def test_rank_association_is_pages_test_where_there_are_no_ties():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = generator.random((4, 4)) + 0.2 * np.arange(4)
        order = np.tile(np.arange(4.0), (4, 1))
        ours = rank_association(values, order)
        rising, falling = (page_trend_test(table, method="exact").pvalue for table in (values, values[:, ::-1]))
        assert ours.p_value == pytest.approx(min(1, 2 * min(rising, falling)), rel=1e-9)
        assert ours.effect == pytest.approx(np.mean([spearmanr(row, range(4)).statistic for row in values]))


def test_rank_association_with_ties_agrees_with_listing_all_orders():
    first = np.array([[1.0, 2, 2, 4], [3, 1, 2, 5], [1, 1, 2, 3]])
    second = np.array([[4.0, 3, 3, 1], [1, 1, 1, 0], [9, 7, 8, 8]])

    ranks = [pd.Series(row).rank().to_numpy() for row in second]
    by_seed = [
        [np.cov(order, rank)[0, 1] for order in permutations(pd.Series(row).rank())]
        for row, rank in zip(first, ranks, strict=True)
    ]
    sums = np.array([sum(one) for one in product(*by_seed)])  # the first is that of the orders as they are
    extreme = np.mean(np.abs(sums) >= abs(sums[0]) - 1e-9)
    assert rank_association(first, second).p_value == pytest.approx(extreme)


def test_trends_keep_their_level_over_all_orders_within_seeds():
    """All 6⁴ orders of three values within each of four seeds are equally likely under the null, whatever the values.

    For normal values the level, averaged over orders and values, is exactly nominal; for one set it varies about that.
    """
    contrast = np.array([-0.5, 0.0, 0.5])
    generator = np.random.default_rng(0)
    levels = []
    for _ in range(20):
        by_seed = [[np.array(order) @ contrast for order in permutations(row)] for row in generator.normal(size=(4, 3))]
        tables = [np.array(one)[:, None] for one in product(*by_seed)]
        levels.append(np.mean([paired_estimate([table], [1.0]).p_value <= 0.05 for table in tables]))
    assert abs(np.mean(levels) - 0.05) <= 3 * np.std(levels, ddof=1) / np.sqrt(len(levels))


def test_holm_is_the_textbooks_and_never_below_the_plain_values():
    p = np.random.default_rng(0).random(12) ** 3
    order = np.argsort(p)
    expected = np.empty(12)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (12 - place) * p[index]))
        expected[index] = largest
    np.testing.assert_allclose(holm(p), expected)
    with_gaps = np.insert(p, [0, 5], np.nan)
    np.testing.assert_allclose(holm(with_gaps)[np.isfinite(with_gaps)], expected)


# --- what does not matter -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    return simulate(accuracy={("ID", "LP"): HUMP, ("OOD", "LP"): DOWN}, samples=60)


def test_the_order_of_rows_and_foreign_methods_columns_and_fractions_do_not_matter(study):
    rows, samples = study
    expected = judge_claims(rows, samples)
    foreign = samples[samples["method"] == "LP"].assign(method="ridge").head(7)
    random = samples[samples["ratio"] == 0.1].assign(ratio=np.nan)
    flipped = samples.assign(label_noise=0.2, correct=False)
    more_samples = pd.concat([samples, foreign, foreign, random, flipped]).sample(frac=1, random_state=0)
    few_shot = rows.assign(fraction=0.1, value=0.0)
    macro_f1 = rows[rows["metric"] == "sve"].assign(metric="macro_f1", value=np.nan)
    more_rows = pd.concat([rows.assign(fraction=1.0), few_shot, macro_f1.assign(fraction=1.0)]).sample(
        frac=1, random_state=1
    )
    judged = judge_claims(more_rows.assign(colour="red"), more_samples.assign(weight=3, profile="small"))
    pd.testing.assert_frame_equal(judged, expected)
    assert tuple(judged.columns) == VERDICT_COLUMNS


def test_names_of_tasks_do_not_matter(study):
    names = {"a": "zebra", "b": "b", "c": "ant", "d": "kiwi"}
    renamed = [table.assign(task=table["task"].map(names)) for table in study]
    judged, expected = judge_claims(*renamed), judge_claims(*study)
    expected = expected.assign(task=expected["task"].replace(names))
    keys = ["claim", "objective", "task", "protocol", "metric", "contrast"]
    judged, expected = (table.sort_values(keys, ignore_index=True) for table in (judged, expected))
    pd.testing.assert_frame_equal(judged, expected, rtol=1e-12)


def test_objectives_are_judged_apart(study):
    other = [table.assign(objective="contrastive") for table in study]
    both = judge_claims(*(pd.concat(pair) for pair in zip(study, other, strict=True)))
    alone = judge_claims(*study).query("claim != 'C7'")
    for objective in ("supervised", "contrastive"):
        mine = both[(both["objective"] == objective) & (both["claim"] != "C7")]
        pd.testing.assert_frame_equal(mine.drop(columns="objective").reset_index(drop=True),
                                      alone.drop(columns="objective").reset_index(drop=True))  # fmt: skip


def test_the_claim_about_contrastive_pretraining_counts_the_verdicts_of_the_others():
    rows, samples = simulate(accuracy={("OOD", "LP"): DOWN, ("ID", "LP"): BOWL}, objective="contrastive", samples=600)
    seventh = judge_claims(rows, samples).query("claim == 'C7'").set_index("contrast")
    assert seventh.loc["C2", "verdict"] == "supported"
    assert seventh.loc["C1", "verdict"] == "contradicted"
    assert seventh.loc["C1", "why"] == "Of 4 rows of C1, 0 are supported and 4 contradicted."
    without = judge_claims(*simulate(samples=40)).query("claim == 'C7'")
    assert set(without["verdict"]) == {"inconclusive"}
    assert without["why"].str.startswith("There are no contrastive results").all()


# --- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_fewer_than_three_seeds_nothing_is_decided(seeds):
    judged = judge_claims(*simulate(accuracy=FALLING, seeds=seeds, samples=60))
    assert set(judged["verdict"]) == {"inconclusive"}
    assert f"from {seeds} of the 3 seeds that a verdict takes" in judged.query("claim == 'C2'")["why"].iloc[0]


def test_a_claim_without_results_is_inconclusive_and_says_why(study):
    rows, samples = (table[table["protocol"].eq("ID") & table["method"].ne("NMTune")] for table in study)
    judged = judge_claims(rows, samples).set_index("claim")
    assert judged.loc["C2", "why"] == "There are no results for this claim."
    assert judged.loc["C6", "why"].iloc[0] == "Not judged: NMTune was not evaluated at every ratio."
    without_slight = [table[table["ratio"].isin([0.0, 0.3])] for table in study]
    first = judge_claims(*without_slight).query("claim == 'C1'")
    assert first["why"].str.contains("no noise ratio up to 10 %").all()
    trend = judge_claims(*without_slight).query("claim == 'C3' and contrast.str.contains('trend')")
    assert trend["why"].str.contains("a trend takes 3 ratios").all()


def test_differences_without_spread_tell_nothing_of_chance():
    rows, samples = simulate(samples=40)
    rows.loc[rows["metric"] == "sve", "value"] = rows["ratio"]
    judged = judge_claims(rows, samples).query("claim == 'C3'")
    assert set(judged["verdict"]) == {"inconclusive"}
    assert judged["why"].str.contains("without spread, chance cannot be told").all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows, samples: (rows, samples.drop(columns="correct")), "in `samples`; missing: correct"),
        (lambda rows, samples: (rows.drop(columns=["n", "value"]), samples), "in `rows`; missing: value, n"),
        (lambda rows, samples: (rows, samples[samples["ratio"] > 0]), r"clean ratio 0\.0 .* supervised · a · ID"),
        (lambda rows, samples: (rows, samples[(samples["ratio"] > 0) | (samples["seed"] > 0)]),
         "LP at 0 %, seed 0, sample 's0' occurs 0 times"),
        (lambda rows, samples: (rows, pd.concat([samples, samples.tail(1)])), "NMTune at 30 %, seed 4, .* occurs 2"),
        (lambda rows, samples: (rows.iloc[:-1], samples), "NMTune at 30 %, seed 4, test_domain 'y' occurs 0"),
        (lambda rows, samples: (rows.assign(value=np.nan), samples), "Expected numbers for supervised · a · ID · lsvr"),
        (lambda rows, samples: (rows, samples.assign(profile=np.where(samples["seed"] > 0, "small", "demo"))),
         "one profile, got demo, small"),
        (lambda rows, samples: (rows.head(0), samples.head(0)), "there are none"),
    ],
)  # fmt: skip
def test_bad_results_are_named(study, spoil, message):
    with pytest.raises(InvalidInputError, match=message):
        judge_claims(*spoil(*study))


def test_every_claim_states_estimand_test_and_rule():
    table = registry_table()
    assert table["id"].tolist() == [f"C{number}" for number in range(1, 8)]
    assert table.map(len).gt(0).all(axis=None)
    texts = table.set_index("id")
    assert (
        texts["estimand"][["C1", "C3", "C6"]]
        .str.contains(f"lowest noise ratio (if ≤ {SLIGHT_UP_TO:g})", regex=False)
        .all()
    )
    assert f"above −{MARGIN:g}" in texts["test"]["C6"]
    judged = judge_claims(*simulate(samples=40))
    assert set(judged["claim"]) == set(table["id"])


def test_the_table_to_read_names_what_each_row_is_about():
    judged = judge_claims(*simulate())
    table = verdict_table(judged).set_index(["claim", "on", "contrast"])
    assert table.index.is_unique
    assert table["why"].tolist() == judged["why"].tolist()
    assert ("C3", "ID · a", "LP: trend over ratios, SVE") in table.index
    assert ("C7", "", "C1") in table.index


def test_heads_of_two_sources_are_judged_together():
    rows, samples = simulate(tasks=[("icons", "OOD")], accuracy={("OOD", "LP"): DOWN})
    both = [(rows.assign(train_domain=source), samples.assign(train_domain=source)) for source in ("x", "y")]
    table = judge_claims(*(pd.concat(parts, ignore_index=True) for parts in zip(*both, strict=True)))
    [row] = table.query("claim == 'C2' and contrast == 'LP: 30 % − 0 %'").itertuples()
    assert row.effect == pytest.approx(DOWN[0.3] - DOWN[0.0], abs=0.02)
    assert row.verdict == "supported"
