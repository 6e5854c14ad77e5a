"""Variants of NMTune: each differs from NMTune in what its name says, and trains as the head of those settings does."""

import numpy as np
import pandas as pd
import pytest

from nml_kit.errors import UnknownNameError
from nml_kit.heads import MLPTune, NMTune
from nml_kit.study import FULL, VARIANTS, load_profile, make_head, make_variant, variant_differences
from nml_kit.study.ablation import GROUPS, group_of

SMOKE = load_profile("smoke")
REFERENCE = SMOKE.model_copy(update={"head_recipe": "reference"})


def changed(variant: str, profile=SMOKE) -> dict[str, object]:
    """The settings in which a variant differs from NMTune."""
    full, other = (make_variant(name, profile, 3).get_params() for name in (FULL, variant))
    return {name: value for name, value in other.items() if value != full[name]}


def test_full_nmtune_is_that_of_the_study():
    assert make_variant(FULL, SMOKE, 3).get_params() == make_head("NMTune", SMOKE, 3).get_params()


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("only COV", {"weights": (0.0, 0.01, 0.0)}),
        ("without COV", {"weights": (0.01, 0.0, 0.01)}),
        ("no term", {"weights": (0.0, 0.0, 0.0)}),
        ("λ × 10", {"weights": (0.1, 0.1, 0.1)}),
        ("no hidden layer", {"hidden": ()}),
        ("3 hidden layers", {"hidden": (256, 256, 256)}),
        ("width 512", {"hidden": (512,)}),
        ("other recipe", {"recipe": "reference"}),
    ],
)
def test_a_variant_differs_in_what_it_names_alone(variant, settings):
    assert changed(variant) == settings


def test_variants_follow_the_recipe_of_the_profile():
    assert changed("other recipe", REFERENCE) == {"recipe": "paper"}
    assert changed("only MSE", REFERENCE) == {"weights": (1.0, 0.0, 0.0)}
    assert changed("λ × 0.1", REFERENCE)["weights"] == pytest.approx((0.1, 0.004, 0.0001))


def test_every_variant_has_settings_of_its_own_and_a_group():
    settings = {str(make_variant(name, SMOKE, 0)) for name in (FULL, *VARIANTS)}
    assert len(settings) == len(VARIANTS) + 1
    assert {group_of(name) for name in VARIANTS} == set(GROUPS)
    with pytest.raises(UnknownNameError, match="variant of NMTune 'without COW': did you mean 'without COV'"):
        make_variant("without COW", SMOKE, 0)


def test_no_term_is_mlp_tuning_to_the_bit():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(60, 8)), np.arange(60) % 3
    heads = (make_variant("no term", SMOKE, 1), MLPTune(epochs=SMOKE.head_epochs, random_state=1))
    first, second = (head.fit(X, y).predict_proba(X) for head in heads)
    np.testing.assert_array_equal(first, second)
    assert isinstance(make_variant("other recipe, no term", SMOKE, 1), MLPTune)
    assert not isinstance(make_variant("other recipe, no term", SMOKE, 1), NMTune)


def test_differences_are_those_of_the_means_in_the_order_of_the_groups():
    generator = np.random.default_rng(0)
    names = (FULL, "width 64", "only MSE")
    parts = [pd.DataFrame({"task": "t", "protocol": "ID", "method": name, "ratio": 0.3, "seed": seed,
                           "sample": [f"s{i}" for i in range(50)], "correct": generator.random(50) < 0.6})
             for name in names for seed in (0, 1)]  # fmt: skip
    samples = pd.concat(parts, ignore_index=True)
    found = variant_differences(samples)
    means = samples.groupby("method")["correct"].mean()
    assert found["method"].tolist() == ["only MSE", "width 64"]
    assert found["group"].tolist() == ["terms", "width"]
    np.testing.assert_allclose(found["mean"], (means - means[FULL])[found["method"]])
    assert (found["low"] <= found["mean"]).all()
    assert (found["mean"] <= found["high"]).all()
