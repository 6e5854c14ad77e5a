"""Which part of NMTune matters: variants that lack a term, or differ in λ, depth, width or recipe, by name."""

from typing import Any

import pandas as pd
from sklearn.base import BaseEstimator

from nml_kit.errors import unknown_name
from nml_kit.heads import TERM_WEIGHTS, MLPTune, NMTune
from nml_kit.inference import paired_differences
from nml_kit.study.profile import Profile

FULL = "NMTune"
_DEEP_WIDTH = 256
_TERMS = ("MSE", "COV", "SVD")

GROUPS: dict[str, tuple[str, ...]] = {
    "terms": (*(f"only {term}" for term in _TERMS), *(f"without {term}" for term in _TERMS), "no term"),
    "λ": ("λ × 0.01", "λ × 0.1", "λ × 10", "λ × 100"),
    "depth": ("no hidden layer", "2 hidden layers", "3 hidden layers"),
    "width": ("width 64", "width 128", "width 512", "width 1024"),
    "recipe": ("other recipe", "other recipe, no term"),
}
VARIANTS = tuple(name for names in GROUPS.values() for name in names)
"""All variants. NMTune itself is `FULL`; "no term" is MLP tuning."""


def group_of(variant: str) -> str:
    """What a variant changes: a key of `GROUPS`; UnknownNameError for an unknown variant.

    >>> group_of("without COV")
    'terms'
    """
    for group, names in GROUPS.items():
        if variant in names:
            return group
    raise unknown_name("variant of NMTune", variant, VARIANTS)


def make_variant(variant: str, profile: Profile, seed: int) -> BaseEstimator:
    """NMTune in the profile's settings, or a variant of it, for `run_study(make=make_variant)`.

    Hidden layers of the variants in depth are 256 wide, as many as `compact-resnet` has features. Everything that a
    variant does not name is as in NMTune. "other recipe" is the authors' code where the profile has
    the paper's recipe, and the other way round: residual, BatchNorm, width, terms and their weights all differ;
    "other recipe, no term" differs in the network alone, to be compared with "no term". Source: the ablations of the
    paper's appendix. Raises UnknownNameError for an unknown variant.

    >>> from nml_kit import load_profile
    >>> make_variant("only COV", load_profile("smoke"), 0).weights
    (0.0, 0.01, 0.0)
    """
    shared: dict[str, Any] = {"recipe": profile.head_recipe, "epochs": profile.head_epochs, "random_state": seed}
    if variant == FULL:
        return NMTune(**shared)
    group = group_of(variant)
    if group == "recipe":
        other = {**shared, "recipe": "reference" if profile.head_recipe == "paper" else "paper"}
        return MLPTune(**other) if "no term" in variant else NMTune(**other)
    weights = TERM_WEIGHTS[profile.head_recipe]
    if group == "terms":
        kept = [_keeps(variant, term) for term in _TERMS]
        mse, cov, svd = (weight if keep else 0.0 for weight, keep in zip(weights, kept, strict=True))
        return NMTune(weights=(mse, cov, svd), **shared)
    if group == "λ":
        factor = float(variant.split("×")[1])
        mse, cov, svd = (factor * weight for weight in weights)
        return NMTune(weights=(mse, cov, svd), **shared)
    return NMTune(hidden=_widths(variant), **shared)


def _keeps(variant: str, term: str) -> bool:
    kind, _, name = variant.partition(" ")
    return {"only": name == term, "without": name != term, "no": False}[kind]


def _widths(variant: str) -> tuple[int, ...]:
    first, last = variant.split()[0], variant.split()[-1]
    return (int(last),) if first == "width" else (_DEEP_WIDTH,) * {"no": 0, "2": 2, "3": 3}[first]


def variant_differences(samples: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in accuracy of each variant to NMTune by group, variant and protocol, over the ratios given.

    `samples` are those of a study (`Study.samples`) of `FULL` and variants; each task weighs equally. Columns:
    protocol, method, mean, low, high (fractions), seeds, n, group; in the order of `GROUPS`.
    """
    found = paired_differences(samples[samples["ratio"].notna()], "method", FULL, ["protocol"])
    found["group"] = found["method"].map(group_of)
    order = found["method"].map(VARIANTS.index)
    return found.iloc[order.argsort(kind="stable")].reset_index(drop=True)
