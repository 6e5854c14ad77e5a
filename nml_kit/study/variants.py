"""Variants of a profile (recipe of pre-training, capacity, kind of noise) and the studies of them side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nml_kit.backbones import CLIP_COMPACT, COMPACT_RESNET, first_width
from nml_kit.inference import paired_differences, panel_names
from nml_kit.store import Store
from nml_kit.study.pretraining_study import pretraining_history
from nml_kit.study.profile import Objective, Profile
from nml_kit.study.run import Study
from nml_kit.study.spectra_tables import noise_changes

_RECIPE_FIELDS = {"supervised": "recipe", "contrastive": "contrastive"}


def recipe_variants(
    profile: Profile, objective: Objective = "supervised", *, ratios: Sequence[float] = ()
) -> dict[str, Profile]:
    """The profile with other recipes of pre-training, by name: what decides how much noise is memorised.

    "as the profile", "twice the epochs", "twice the epochs, no augmentation" (max_shift 0) and, if the architecture is
    a compact one wider than 8, "narrower network" (half as wide, rounded up to a multiple of 8), at `ratios`
    (fractions; none: 0 and the profile's highest).

    >>> from nml_kit import load_profile
    >>> variants = recipe_variants(load_profile("demo"))
    >>> {name: variant.recipe.epochs for name, variant in variants.items()}
    {'as the profile': 8, 'twice the epochs': 16, 'twice the epochs, no augmentation': 16, 'narrower network': 8}
    >>> variants["narrower network"].recipe.architecture
    'compact-resnet:16'
    """
    field, chosen = _RECIPE_FIELDS[objective], tuple(ratios) or (0.0, max(profile.ratios))
    recipe = getattr(profile, field)
    longer = {"epochs": 2 * recipe.epochs}
    changes: dict[str, dict[str, Any]] = {
        "as the profile": {},
        "twice the epochs": longer,
    }
    if "max_shift" in type(recipe).model_fields:  # a published procedure keeps its augmentation
        changes["twice the epochs, no augmentation"] = longer | {"max_shift": 0}
    if narrower := _half_as_wide(recipe.architecture):
        changes["narrower network"] = {"architecture": narrower}
    return {name: profile.model_copy(update={field: recipe.model_copy(update=change), "ratios": chosen})
            for name, change in changes.items()}  # fmt: skip


def _half_as_wide(architecture: str) -> str | None:
    """The compact architecture of half the width, rounded up to a multiple of 8; None if there is none narrower."""
    for base in (COMPACT_RESNET, CLIP_COMPACT):
        first = first_width(architecture, base)
        if first is not None and first > 8:
            return f"{base}:{math.ceil(first / 16) * 8}"
    return None


def training_curves(
    variants: Mapping[str, Profile], *, objective: Objective = "supervised", store: Store | None = None
) -> pd.DataFrame:
    """What each pre-training reached after each epoch: variant, ratio, seed, epoch, memorised, test_accuracy.

    Fractions: the share of flipped labels that the network predicts (NaN if none is flipped), and the accuracy on the
    clean test split (NaN for an objective without). Networks are read from the store, or trained.
    """
    columns = ["variant", "ratio", "seed", "epoch", "memorised", "test_accuracy"]
    histories = [pretraining_history(profile, objective, store=store, progress=False).assign(variant=name)
                 for name, profile in variants.items()]  # fmt: skip
    return pd.concat(histories, ignore_index=True)[columns]


def variant_rows(studies: Mapping[str, Study]) -> pd.DataFrame:
    """The result rows of all studies with the column variant."""
    return pd.concat([study.rows.assign(variant=name) for name, study in studies.items()], ignore_index=True)


def accuracy_changes(studies: Mapping[str, Study]) -> pd.DataFrame:
    """Accuracy at the highest ratio minus that at 0, paired by seed and sample, with 95 % intervals.

    Columns: variant, task, protocol, panel, quantity ("accuracy"), ratio, mean, low, high (fractions).
    """
    frames = []
    for name, study in studies.items():
        found = paired_differences(study.samples, "ratio", 0.0, ["task", "protocol"])
        frames.append(found[found["ratio"] == found["ratio"].max()].assign(variant=name))
    return _labelled(pd.concat(frames, ignore_index=True), "accuracy")


def sve_changes(studies: Mapping[str, Study]) -> pd.DataFrame:
    """SVE (nats) of the raw features at the highest ratio minus that at 0, with the smallest and the largest seed.

    Columns: variant, task, protocol, panel, quantity ("SVE (nats)"), clean, noisy, mean, low, high, rising, pairs,
    consistent (see `noise_changes`); several held-out domains of a task are averaged.
    """
    rows = variant_rows(studies).query("metric == 'sve' and method == 'LP'")
    return _labelled(noise_changes(rows, ["variant", "task", "protocol"]), "SVE (nats)")


def _labelled(changes: pd.DataFrame, quantity: str) -> pd.DataFrame:
    return changes.assign(panel=panel_names(changes), quantity=quantity)
