"""Variants of a profile: what differs, what is shared, and their tables against the studies themselves."""

import numpy as np
import pytest

from nml_kit.backbones import build_network
from nml_kit.store import Store
from nml_kit.study import (
    Origin,
    Profile,
    Study,
    accuracy_changes,
    load_profile,
    pretrained_backbone,
    pretraining_task,
    recipe_variants,
    run_study,
    sve_changes,
    training_curves,
    variant_rows,
)

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def profile() -> Profile:
    downstream = {"id": ("digits",), "ood": {"icons": ("outline",)}, "train_per_class": 4}
    smoke = load_profile("smoke").model_dump()
    return Profile.model_validate(smoke | {"downstream": downstream, "ratios": (0.0, 0.1, 0.3)})


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def studies(profile, home) -> dict[str, Study]:
    kinds = ("uniform", "asymmetric", "confusion")
    return {kind: run_study(profile, noise=kind, methods=["LP"], store=home, progress=False) for kind in kinds}


def test_recipes_differ_in_what_they_say(profile):
    variants = recipe_variants(profile)
    recipes = {name: variant.recipe for name, variant in variants.items()}
    assert recipes["as the profile"] == profile.recipe
    longer = recipes["twice the epochs, no augmentation"]
    assert (longer.epochs, longer.max_shift) == (2 * profile.recipe.epochs, 0)
    assert recipes["twice the epochs"] == longer.model_copy(update={"max_shift": profile.recipe.max_shift})
    assert {variant.ratios for variant in variants.values()} == {(0.0, 0.3)}
    assert recipe_variants(profile, ratios=[0.1])["as the profile"].ratios == (0.1,)


@pytest.mark.parametrize(
    ("objective", "field", "base"), [("supervised", "recipe", "compact-resnet"),
                                     ("contrastive", "contrastive", "clip-compact")]
)  # fmt: skip
@pytest.mark.parametrize(("width", "half"), [("", ":16"), (":24", ":16"), (":16", ":8"), (":48", ":24")])
def test_half_the_width_changes_the_architecture_alone(profile, objective, field, base, width, half):
    own = getattr(profile, field).model_copy(update={"architecture": base + width})
    variants = recipe_variants(profile.model_copy(update={field: own}), objective)
    narrower = getattr(variants["narrower network"], field)
    assert narrower == own.model_copy(update={"architecture": base + half})
    assert variants["narrower network"] == variants["as the profile"].model_copy(update={field: narrower})


@pytest.mark.parametrize("architecture", ["compact-resnet:8", "torchvision:resnet18"])
def test_what_cannot_be_halved_has_no_such_variant(profile, architecture):
    own = profile.recipe.model_copy(update={"architecture": architecture})
    assert list(recipe_variants(profile.model_copy(update={"recipe": own}))) == [
        "as the profile", "twice the epochs", "twice the epochs, no augmentation",
    ]  # fmt: skip


def test_half_the_width_has_about_a_quarter_of_the_weights(profile):
    own, half = (
        sum(weight.numel() for weight in build_network(name, num_classes=2, seed=0).parameters())
        for name in ("compact-resnet", recipe_variants(profile)["narrower network"].recipe.architecture)
    )
    assert own / half == pytest.approx(4, rel=0.05)


def test_kinds_share_the_clean_networks_and_differ_in_the_noisy_ones(studies, profile, home):
    rows = variant_rows(studies).query("ratio == ratio and method == 'LP'")
    backbones = rows.groupby(["variant", "ratio"])["backbone"].unique().map(list)
    assert backbones.xs(0.0, level="ratio").map(tuple).nunique() == 1
    assert backbones.xs(0.3, level="ratio").map(tuple).nunique() == 3
    # Random baseline aside: one clean network, and per kind two noisy ones.
    assert len(list(home.entries("backbone"))) == 1 + 3 * 2
    own = run_study(profile, methods=("LP",), store=home, progress=False)
    assert studies["uniform"].rows.equals(own.rows)
    assert studies["confusion"].profile.noise == "confusion"
    assert set(studies["confusion"].rows["noise"]) == {"confusion"}


def test_changes_are_differences_of_means(studies):
    accuracy = accuracy_changes(studies).set_index(["variant", "task"])["mean"]
    sve = sve_changes(studies).set_index(["variant", "task"])["mean"]
    for kind, study in studies.items():
        for metric, changes in (("accuracy", accuracy), ("sve", sve)):
            rows = study.rows[study.rows["metric"] == metric]
            values = rows.pivot_table(index="task", columns="ratio", values="value")
            expected = (values[0.3] - values[0.0]).to_dict()
            assert changes[kind].to_dict() == pytest.approx(expected)


def test_curves_are_the_histories_of_the_networks(studies, profile, home):
    curves = training_curves({"uniform": profile}, store=home)
    assert len(curves) == 3 * profile.recipe.epochs
    assert curves.query("ratio == 0")["memorised"].isna().all()
    backbone = pretrained_backbone(profile, pretraining_task(profile), Origin(0.3, 0), store=home, progress=False)
    found = curves.query("ratio == 0.3").drop(columns=["variant", "ratio", "seed"])
    expected = [[row["epoch"], row["memorised"], row["test_accuracy"]] for row in backbone.card["history"]]
    np.testing.assert_array_equal(found.to_numpy(), expected)
