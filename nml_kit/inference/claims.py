"""The paper's claims as hypotheses stated before looking: estimand, test, rule, and a verdict for each task."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from nml_kit.inference.contrasts import MARGIN, SLIGHT_UP_TO, Block, Result, TaskKey, blocks_of, results_of
from nml_kit.inference.statistics import holm

LEVEL, FEWEST_SEEDS = 0.05, 3
SUPPORTED, CONTRADICTED, INCONCLUSIVE = VERDICTS = ("supported", "contradicted", "inconclusive")
VERDICT_COLUMNS = (
    "claim", "objective", "task", "protocol", "metric", "contrast", "claimed", "effect", "low", "high", "null",
    "p_value", "p_adjusted", "n_seeds", "n_samples", "verdict", "why",
)  # fmt: skip
_NUMBERS = ("effect", "low", "high", "null", "p_value", "p_adjusted")
_SUMMARY, _SUMMARISED = "C7", ("C1", "C2", "C3", "C4", "C5")
_CLAIMED = {1: "above", -1: "below", 0: "apart from"}
_SLIGHT = f"lowest noise ratio (if ≤ {SLIGHT_UP_TO:g})"
_ADJUSTED = "two-sided, Holm within claim and objective."
_TEST = f"Paired over seeds and test samples, both of them random (Banerjee's interval); {_ADJUSTED}"
_SEEDS_TEST = f"One paired value per seed, for these test sets (t over seeds); {_ADJUSTED}"
_RULE = (
    "Supported if the adjusted test rejects as claimed, contradicted if it rejects the other way, else inconclusive."
)
_STEPS = "A trend is not supported if the plain 95 % interval of any single step lies wholly on the other side."


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in our words, what is estimated for it, how it is tested and decided."""

    id: str
    statement: str
    estimand: str
    test: str
    rule: str


_ALL = (
    Claim(
        "C1",
        "Slight noise improves ID linear probing; more noise lowers it again.",
        f"ID accuracy of LP, per task: {_SLIGHT} − clean; highest ratio − that one.",
        _TEST,
        f"{_RULE} The first is claimed above zero, the second below.",
    ),
    Claim(
        "C2",
        "Any noise lowers OOD linear probing, monotonically.",
        "OOD accuracy of LP, per task: each noise ratio − clean; change along the line fitted to the ratios' ranks.",
        _TEST,
        f"{_RULE} All are claimed below zero. {_STEPS}",
    ),
    Claim(
        "C3",
        "SVE on ID sets rises slightly at slight noise and further with more.",
        f"SVE (nats) of the features, per ID task: {_SLIGHT} − clean; change along the line fitted to ratios' ranks.",
        _SEEDS_TEST,
        f"{_RULE} Both are claimed above zero. {_STEPS}",
    ),
    Claim(
        "C4",
        "LSVR on OOD sets changes monotonically with noise and goes with worse OOD accuracy.",
        "LSVR (nats) of the features, per OOD task (mean over held-out domains): change along the line fitted to the "
        "ratios' ranks; mean over seeds of the rank correlation of LSVR and LP accuracy over ratios.",
        f"Trend: {_SEEDS_TEST} Correlation: exact permutation within seeds (Page's test); {_ADJUSTED}",
        f"{_RULE} The trend may go either way, so nothing contradicts it. A higher LSVR, that is a smaller share of "
        f"the first singular value, is claimed to go with lower accuracy, as NMTune's term has it. {_STEPS}",
    ),
    Claim(
        "C5",
        "NMTune ≥ MLP ≥ LP on ID, and more so on OOD, at every ratio; it improves SVE and LSVR.",
        "Mean over all ratios, per task: accuracy of NMTune − LP, NMTune − MLP, MLP − LP on ID and OOD; NMTune − LP "
        "and NMTune − MLP in SVE on ID and in LSVR on OOD, of what the classifier reads; and accuracy of NMTune − LP, "
        "mean of the OOD tasks − mean of the ID tasks.",
        f"Accuracy: {_TEST} SVE, LSVR: {_SEEDS_TEST}",
        f"{_RULE} LSVR is claimed below zero, all else above. A row of a task is not supported if at any single ratio "
        "the plain 95 % interval lies wholly on the other side.",
    ),
    Claim(
        "C6",
        "Under NMTune, a model pre-trained on clean data is at least as good on ID as one with slight noise.",
        f"ID accuracy of NMTune, per task: clean − {_SLIGHT}.",
        f"Non-inferiority: above −{MARGIN:g}, one test sample in 200, less than one test set resolves? {_TEST}",
        f"Supported if the adjusted test finds it above −{MARGIN:g}, contradicted if below, else inconclusive.",
    ),
    Claim(
        "C7",
        "C1 to C5 hold for contrastive pre-training as well.",
        "The verdicts of C1 to C5 for the objective contrastive, counted for each of these claims.",
        "None of its own.",
        "Supported if at least half of a claim's rows are supported and none contradicted, contradicted if at least "
        "half are contradicted and none supported, else inconclusive.",
    ),
)
CLAIMS: Mapping[str, Claim] = {claim.id: claim for claim in _ALL}


def judge_claims(rows: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim on every task: one row per claim, objective, task and contrast, in VERDICT_COLUMNS.

    `rows` and `samples` are those of a `Study`, of one profile and any objectives; accuracy comes from `samples`, SVE
    and LSVR from `rows`, of whole training sets; the random baseline and other methods are left out. Effects are
    fractions of accuracy or nats, with plain 95 % intervals; verdicts rest on p-values adjusted by Holm within a claim
    and objective: there, the chance of any false verdict is at most 5 %. `inconclusive` is not "no effect"; with fewer
    than three seeds every verdict is that. Nothing is drawn at random. A claim without results has an inconclusive row.
    Raises InvalidInputError if a column or the clean ratio is missing, seeds or samples are unpaired or repeated.

    >>> CLAIMS["C2"].statement
    'Any noise lowers OOD linear probing, monotonically.'
    """
    blocks = blocks_of(rows, samples)
    objectives = sorted({key.objective for key in blocks})
    verdicts = [row for objective in objectives for row in _judge_objective(blocks, objective)]
    table = pd.DataFrame([*verdicts, *_contrastive(verdicts)], columns=list(VERDICT_COLUMNS))
    return table.astype(dict.fromkeys(_NUMBERS, float))


def overall_verdict(verdicts: Sequence[str]) -> str:
    """The verdict on a claim from those of its rows, by the rule of C7.

    >>> overall_verdict(["supported", "inconclusive"]), overall_verdict(["supported", "contradicted"])
    ('supported', 'inconclusive')
    """
    every = list(verdicts)
    for one, other in ((SUPPORTED, CONTRADICTED), (CONTRADICTED, SUPPORTED)):
        if every and 2 * every.count(one) >= len(every) and other not in every:
            return one
    return INCONCLUSIVE


def verdict_counts(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Rows of each claim and objective by verdict: claim, objective, supported, contradicted, inconclusive, rows."""
    counts = verdicts.groupby(["claim", "objective", "verdict"]).size().unstack("verdict", fill_value=0)
    counts = counts.reindex(columns=list(VERDICTS), fill_value=0)
    return counts.assign(rows=counts.sum(axis=1)).reset_index().rename_axis(columns=None)


def verdict_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts to read: claim, objective, on (protocol, task), contrast (with its metric), claimed, verdict, why."""
    on = (verdicts["protocol"] + " · " + verdicts["task"]).where(verdicts["task"] != "", "")
    metric = verdicts["metric"].where(~verdicts["metric"].isin(["", "accuracy"]), "")
    contrast = verdicts["contrast"] + metric.where(metric == "", ", " + metric.str.upper())
    return verdicts.assign(on=on, contrast=contrast)[
        ["claim", "objective", "on", "contrast", "claimed", "verdict", "why"]
    ]


def registry_table() -> pd.DataFrame:
    """The claims as a table: id, statement, estimand, test, rule."""
    return pd.DataFrame([vars(claim) for claim in CLAIMS.values()])


def _judge_objective(blocks: dict[TaskKey, Block], objective: str) -> Iterator[dict[str, Any]]:
    results = results_of({key: block for key, block in blocks.items() if key.objective == objective})
    for claim in CLAIMS:
        if claim == _SUMMARY:
            continue
        family = [result for result in results if result.part.claim == claim]
        adjusted = holm(np.array([result.estimate.p_value for result in family]))
        yield from (_row(result, float(p)) for result, p in zip(family, adjusted, strict=True))
        if not family:
            yield _row_without_numbers(claim, objective, why="There are no results for this claim.")


def _row(result: Result, adjusted: float) -> dict[str, Any]:
    key, part, estimate = result.key, result.part, result.estimate
    verdict, why = _verdict(result, adjusted)
    return {
        "claim": part.claim, "objective": key.objective, "task": key.task, "protocol": key.protocol,
        "metric": key.metric, "contrast": part.contrast, "claimed": _CLAIMED[part.direction],
        "effect": estimate.effect, "low": estimate.low, "high": estimate.high, "null": part.null,
        "p_value": estimate.p_value, "p_adjusted": adjusted, "n_seeds": result.seeds, "n_samples": result.samples,
        "verdict": verdict, "why": why,
    }  # fmt: skip


def _verdict(result: Result, adjusted: float) -> tuple[str, str]:
    """The verdict by the declared rule, and a sentence that gives the numbers for it."""
    part, estimate = result.part, result.estimate
    if result.missing:
        return INCONCLUSIVE, f"Not judged: {result.missing}."
    value = f"{estimate.effect:+.4f}"
    if result.seeds < FEWEST_SEEDS:
        return INCONCLUSIVE, f"{value} from {result.seeds} of the {FEWEST_SEEDS} seeds that a verdict takes."
    if math.isnan(adjusted):
        return INCONCLUSIVE, f"{value} in every seed: without spread, chance cannot be told."
    interval = "in every seed" if math.isnan(estimate.low) else f"[{estimate.low:+.4f}, {estimate.high:+.4f}]"
    above = estimate.effect > part.null
    side = "not clearly apart from" if adjusted > LEVEL else "above" if above else "below"
    why = f"{value} {interval}, adjusted p = {adjusted:.2g}: {side} {part.null:g}"
    if adjusted > LEVEL:
        return INCONCLUSIVE, f"{why}."
    if part.direction and above != (part.direction > 0):
        return CONTRADICTED, f"{why}, but claimed {_CLAIMED[part.direction]}."
    if result.reverse:
        return INCONCLUSIVE, f"{why}, but {result.reverse}."
    return SUPPORTED, f"{why}, as claimed."


def _row_without_numbers(claim: str, objective: str, **filled: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys(_NUMBERS, math.nan)
    texts = {"task": "", "protocol": "", "metric": "", "contrast": "", "claimed": "", "verdict": INCONCLUSIVE}
    return {"claim": claim, "objective": objective, **nothing, **texts, "n_seeds": 0, "n_samples": 0, **filled}


def _contrastive(verdicts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """C7: the verdicts of C1 to C5 for contrastive pre-training, one row for each of these claims."""
    for claim in _SUMMARISED:
        mine = [row for row in verdicts if (row["objective"], row["claim"]) == ("contrastive", claim) and row["task"]]
        if not mine:
            why = f"There are no contrastive results for {claim}."
            yield _row_without_numbers(_SUMMARY, "contrastive", contrast=claim, why=why)
            continue
        every = [row["verdict"] for row in mine]
        supported, contradicted = every.count(SUPPORTED), every.count(CONTRADICTED)
        why = f"Of {len(mine)} rows of {claim}, {supported} are supported and {contradicted} contradicted."
        yield _row_without_numbers(
            _SUMMARY, "contrastive", contrast=claim, verdict=overall_verdict(every), why=why,
            n_seeds=min(row["n_seeds"] for row in mine), n_samples=max(row["n_samples"] for row in mine),
        )  # fmt: skip
