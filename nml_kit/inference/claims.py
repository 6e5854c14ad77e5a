"""Verdicts on the paper's claims, for each task, by the estimands, tests and rules stated beforehand in claims.yaml."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nml_kit.inference.contrasts import Result, blocks_of, results_of
from nml_kit.inference.statistics import holm
from nml_kit.store import read_yaml

LEVEL, FEWEST_SEEDS = 0.05, 3
VERDICTS: tuple[str, str, str] = ("supported", "contradicted", "inconclusive")
SUPPORTED, CONTRADICTED, INCONCLUSIVE = VERDICTS
VERDICT_COLUMNS = (
    "claim", "objective", "task", "protocol", "metric", "contrast", "claimed", "effect", "low", "high", "null",
    "p_value", "p_adjusted", "n_seeds", "n_samples", "verdict", "why",
)  # fmt: skip
_NUMBERS = ("effect", "low", "high", "null", "p_value", "p_adjusted")
_NO_RESULT = dict.fromkeys(["task", "protocol", "metric", "contrast", "claimed"], "") | {"n_seeds": 0, "n_samples": 0}
_TESTED, _SUMMARISED = ("C1", "C2", "C3", "C4", "C5", "C6"), ("C1", "C2", "C3", "C4", "C5")
_CLAIMED = {1: "above", -1: "below", 0: "apart from"}


def judge_claims(rows: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Judge every claim on every task: one row per claim, objective, task and contrast, in VERDICT_COLUMNS.

    `rows` and `samples` are those of a `Study`, of one profile and any objectives; accuracy comes from `samples`, SVE
    and LSVR from `rows`, of whole training sets; the random baseline and other methods are left out. Effects are
    fractions of accuracy or nats, with plain 95 % intervals; verdicts rest on p-values adjusted by Holm within a claim
    and objective: there, the chance of any false verdict is at most 5 %. `inconclusive` is not "no effect"; with fewer
    than three seeds every verdict is that. Nothing is drawn at random. A claim without results has an inconclusive row.
    Raises InvalidInputError if a column or the clean ratio is missing, seeds or samples are unpaired or repeated.
    """
    blocks, verdicts = blocks_of(rows, samples), []
    for objective in sorted({key.objective for key in blocks}):
        results = results_of({key: block for key, block in blocks.items() if key.objective == objective})
        for claim in _TESTED:
            family = [result for result in results if result.part.claim == claim]
            adjusted = holm(np.array([result.estimate.p_value for result in family]))
            verdicts += [_row(result, float(p)) for result, p in zip(family, adjusted, strict=True)]
            if not family:
                why = "There are no results for this claim."
                verdicts.append(_NO_RESULT | {"claim": claim, "objective": objective, "why": why})
    verdicts += [_summary(claim, verdicts) for claim in _SUMMARISED]
    table = pd.DataFrame(verdicts, columns=list(VERDICT_COLUMNS)).fillna({"verdict": INCONCLUSIVE})
    return table.astype(dict.fromkeys(_NUMBERS, float))


def overall_verdict(verdicts: Sequence[str]) -> str:
    """The verdict on a claim from those of its rows, by the rule of C7.

    >>> overall_verdict(["supported", "inconclusive"]), overall_verdict(["supported", "contradicted"])
    ('supported', 'inconclusive')
    """
    every = list(verdicts)
    for verdict, other in ((SUPPORTED, CONTRADICTED), (CONTRADICTED, SUPPORTED)):
        if every and 2 * every.count(verdict) >= len(every) and other not in every:
            return verdict
    return INCONCLUSIVE


def verdict_counts(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Rows of each claim and objective by verdict: claim, objective, supported, contradicted, inconclusive, rows."""
    counts = verdicts.groupby(["claim", "objective", "verdict"]).size().unstack("verdict", fill_value=0)
    counts = counts.reindex(columns=list(VERDICTS), fill_value=0)
    return counts.assign(rows=counts.sum(axis=1)).reset_index().rename_axis(columns=None)


def verdict_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Verdicts to read: claim, objective, on (protocol, task), contrast (with its metric), claimed, verdict, why."""
    on = (verdicts["protocol"] + " · " + verdicts["task"]).where(verdicts["task"] != "", "")
    metric = (", " + verdicts["metric"].str.upper()).where(~verdicts["metric"].isin(["", "accuracy"]), "")
    table = verdicts.assign(on=on, contrast=verdicts["contrast"] + metric)
    return table[["claim", "objective", "on", "contrast", "claimed", "verdict", "why"]]


def registry_table() -> pd.DataFrame:
    """The paper's claims as hypotheses: id, statement, estimand, test, rule.

    >>> registry_table().set_index("id")["statement"]["C2"]
    'Any noise lowers OOD linear probing, monotonically.'
    """
    return pd.DataFrame(read_yaml(Path(__file__).with_name("claims.yaml")))


def _row(result: Result, adjusted: float) -> dict[str, Any]:
    part = result.part
    verdict, why = _verdict(result, adjusted)
    return {
        **result.key._asdict(), **result.estimate._asdict(), "claim": part.claim, "contrast": part.contrast,
        "claimed": _CLAIMED[part.direction], "null": part.null, "p_adjusted": adjusted, "n_seeds": result.seeds,
        "n_samples": result.samples, "verdict": verdict, "why": why,
    }  # fmt: skip


def _verdict(result: Result, adjusted: float) -> tuple[str, str]:
    """The verdict by the declared rule, and a sentence that gives the numbers for it."""
    part, estimate = result.part, result.estimate
    if part.missing:
        return INCONCLUSIVE, f"Not judged: {part.missing}."
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
    return (INCONCLUSIVE, f"{why}, but {result.reverse}.") if result.reverse else (SUPPORTED, f"{why}, as claimed.")


def _summary(claim: str, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of C7 about a claim, from the claim's verdicts for contrastive pre-training."""
    mine = [row for row in verdicts if (row["objective"], row["claim"]) == ("contrastive", claim) and row["task"]]
    row = _NO_RESULT | {"claim": "C7", "objective": "contrastive", "contrast": claim}
    if not mine:
        return row | {"why": f"There are no contrastive results for {claim}."}
    every = [row["verdict"] for row in mine]
    supported, contradicted = every.count(SUPPORTED), every.count(CONTRADICTED)
    why = f"Of {len(mine)} rows of {claim}, {supported} are supported and {contradicted} contradicted."
    sizes = {"n_seeds": min(row["n_seeds"] for row in mine), "n_samples": max(row["n_samples"] for row in mine)}
    return row | sizes | {"verdict": overall_verdict(every), "why": why}
