"""What notebooks of before `run_study(methods=…)` call; it goes with them."""

from dataclasses import replace
from typing import Any

import pandas as pd
from sklearn.base import BaseEstimator

from nml_kit.inference import paired_differences
from nml_kit.study.methods import METHODS, TUNED, ablation, make_head, repairs, tuned_networks
from nml_kit.study.profile import Profile
from nml_kit.study.run import Study, run_study

FULL = "NMTune"
_GROUPS = {"terms": ("only MSE", "only COV", "only SVD", "without MSE", "without COV", "without SVD", "no term"),
           "λ": ("λ × 0.01", "λ × 0.1", "λ × 10", "λ × 100"),
           "depth": ("no hidden layer", "2 hidden layers", "3 hidden layers"),
           "width": ("width 64", "width 128", "width 512", "width 1024"),
           "recipe": ("other recipe", "other recipe, no term")}  # fmt: skip
VARIANTS = tuple(name for names in _GROUPS.values() for name in names)
COMPARED = (*METHODS, *TUNED)


class RepairStudy:
    def __init__(self, study: Study) -> None:
        self.study, self.selections = study, study.selections


def make_variant(variant: str, profile: Profile, seed: int) -> BaseEstimator:
    if variant == FULL:
        return make_head("NMTune", profile, seed)
    every = {name: head for group in ablation(profile).values() for name, head in group.items()}
    return every[variant].set_params(random_state=seed)


def variant_differences(samples: pd.DataFrame) -> pd.DataFrame:
    found = paired_differences(samples[samples["ratio"].notna()], "method", FULL, ["protocol"])
    found["group"] = found["method"].map({name: group for group, names in _GROUPS.items() for name in names})
    return found.iloc[found["method"].map(VARIANTS.index).argsort(kind="stable")].reset_index(drop=True)


def run_repair_study(profile: Profile, **options: Any) -> RepairStudy:
    return RepairStudy(run_study(profile, methods=repairs(profile), **options))


def run_tuning_study(profile: Profile, **options: Any) -> RepairStudy:
    heads = {name: repairs(profile)[name] for name in METHODS}
    return RepairStudy(run_study(profile, methods={**heads, **tuned_networks(profile)}, **options))


def run_kinds(profile: Profile, *, objective: str = "supervised", **options: Any) -> dict[str, Study]:
    options = {"methods": ("LP",), "objective": objective, **options}
    if objective == "contrastive":
        return {"caption exchange": run_study(profile, **options)}
    kinds = sorted(("uniform", "asymmetric", "confusion"), key=lambda kind: kind != profile.noise)
    return {kind: replace(run_study(profile, noise=kind, **options)) for kind in kinds}


def verdicts(differences: pd.DataFrame) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"worse": [], "better": [], "unclear": []}
    for row in differences.to_dict("records"):
        verdict = "worse" if row["high"] < 0 else "better" if row["low"] > 0 else "unclear"
        change = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        found[verdict].append(f"{row['protocol']} {row['task']}: {row['method']} {change}".replace("-0", "−0"))
    return found


def minus_others(differences: pd.DataFrame) -> pd.DataFrame:
    return differences.assign(mean=-differences["mean"], low=-differences["high"], high=-differences["low"])
