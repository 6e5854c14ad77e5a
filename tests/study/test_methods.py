"""Methods: every repair can be tuned and tested, variants differ in what they name, settings tell them apart."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.features import Features, Fold
from nml_kit.heads import ExactLinearProbe, MLPTune, NMTune
from nml_kit.store import Store
from nml_kit.study import TUNED, Request, ablation, fit_requests, load_profile, make_head, repairs, tuned_networks
from nml_kit.study.methods import candidates_of, head_settings, settings_hash

SMOKE = load_profile("smoke")
REFERENCE = SMOKE.changed(head_recipe="reference")


def separable(per_class: int = 40) -> Features:
    """Three classes on orthogonal directions of very unequal scale."""
    generator = np.random.default_rng(0)
    labels = np.arange(3 * per_class) % 3
    values = generator.normal(size=(len(labels), 12)) * 0.3 + 2 * np.eye(12)[labels]
    scales = np.repeat([3.0, 1.0, 0.3], 4)
    splits = np.where(np.arange(len(labels)) % 4 == 3, "test", "train")
    ids = np.array([f"s{row}" for row in range(len(labels))])
    domains = np.full(len(labels), "one")
    return Features("toy", (values * scales).astype(np.float32), ids, labels, ("x", "y", "z"), domains, splits, "f")


def fitted(method: str, store: Store, fraction: float = 1.0):
    candidates = candidates_of(repairs(SMOKE), load_profile("demo"), seed=0)[method]
    request = Request(separable(80), Fold("toy", "ID", fraction=fraction), candidates, method)
    return fit_requests([request], store=store, jobs=1, progress=False)[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", repairs(SMOKE))
@pytest.mark.parametrize("fraction", [1.0, 0.3])
def test_every_repair_solves_an_easy_task_without_a_warning(method, fraction, store):
    fit = fitted(method, store, fraction)
    assert 3 <= len(fit.candidates) <= 9
    assert fit.metrics()["accuracy"] > 0.9


def test_the_standardised_probe_is_the_probe_on_standardised_features(store):
    fit = fitted("standardised", store)
    penalty = float(fit.candidates[fit.chosen].split("C=")[1])
    train, test = (separable(80).select(split=split) for split in ("train", "test"))
    scale = StandardScaler().fit(train.values)
    alone = ExactLinearProbe(C=penalty).fit(scale.transform(train.values), train.labels)
    np.testing.assert_array_equal(fit.predictions, alone.predict(scale.transform(test.values)))


def hashes() -> list[str]:
    """Those of all settings of repairs and of a pipeline."""
    families = candidates_of(repairs(SMOKE), SMOKE, seed=0).values()
    return [settings_hash(head) for family in families for head in family.values()] + [settings_hash(a_pipeline())]


def test_settings_of_all_candidates_differ_and_are_the_same_in_another_process():
    assert len(set(hashes())) == len(hashes())
    code = "from tests.study.test_methods import hashes; print(*hashes())"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           cwd=Path(__file__).parents[2])  # fmt: skip
    assert there.stdout.split() == hashes()


def a_pipeline():
    steps = [("scale", StandardScaler()), ("probe", LogisticRegression(C=np.float64(0.5)))]
    return Pipeline(steps)


@pytest.mark.parametrize(
    "changed", [{"probe__C": 2.0}, {"scale__with_mean": False}, {"scale": "passthrough"}, {"verbose": True}]
)
def test_every_parameter_inside_a_pipeline_counts(changed):
    assert settings_hash(a_pipeline().set_params(**changed)) != settings_hash(a_pipeline())


def test_a_fitted_pipeline_has_the_settings_of_an_unfitted_one():
    train = separable().select(split="train")
    assert settings_hash(a_pipeline().fit(train.values, train.labels)) == settings_hash(a_pipeline())


def test_functions_among_the_settings_count_by_their_name_or_their_code():
    named = FunctionTransformer(np.log1p)
    assert head_settings(named)["parameters"]["func"].endswith("log1p")
    own = [settings_hash(FunctionTransformer(function)) for function in (lambda v: v, lambda v: v + 1, lambda v: v)]
    assert own[0] == own[2] != own[1]


def variants(profile=SMOKE) -> dict[str, BaseEstimator]:
    """Each variant of NMTune, seeded."""
    named = {name: head for group in ablation(profile).values() for name, head in group.items()}
    return {name: candidates[name] for name, candidates in candidates_of(named, profile, 3).items()}


def changed(variant: str, profile=SMOKE) -> dict[str, object]:
    """The settings in which a variant differs from NMTune."""
    full, other = make_head("NMTune", profile, 3).get_params(), variants(profile)[variant].get_params()
    return {name: value for name, value in other.items() if value != full[name]}


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


def test_every_variant_has_settings_of_its_own():
    every = [settings_hash(head) for head in (make_head("NMTune", SMOKE, 3), *variants().values())]
    assert len(every) == len(set(every)) == 1 + sum(map(len, ablation(SMOKE).values()))


def test_no_term_is_mlp_tuning_to_the_bit():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(60, 8)), np.arange(60) % 3
    heads = (variants()["no term"], MLPTune(epochs=SMOKE.head_epochs, random_state=3))
    first, second = (head.fit(X, y).predict_proba(X) for head in heads)
    np.testing.assert_array_equal(first, second)
    assert isinstance(variants()["other recipe, no term"], MLPTune)
    assert not isinstance(variants()["other recipe, no term"], NMTune)


def test_tuned_networks_have_settings_to_choose_from_and_the_terms_have_weights():
    for name, (tuning, grid) in tuned_networks(load_profile("small")).items():
        assert tuning.method == ("lora" if "LoRA" in name else "full")
        assert ("weights" in grid) == ("terms" in name)
    assert tuple(tuned_networks(SMOKE)) == TUNED
    assert all(head.random_state == 3 for head in candidates_of(tuned_networks(SMOKE), SMOKE, 3)["full"].values())


def test_every_random_state_is_the_seed_and_what_was_passed_stays_as_it_was():
    mine = Pipeline([("scale", StandardScaler()), ("probe", LogisticRegression())])
    [head] = candidates_of({"mine": mine}, SMOKE, seed=7)["mine"].values()
    assert head.named_steps["probe"].random_state == 7
    assert mine.named_steps["probe"].random_state is None


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        (["NMTunes"], UnknownNameError, "Unknown method 'NMTunes': did you mean 'NMTune'"),
        ({"mine": LogisticRegression}, InvalidInputError, "expected a scikit-learn classifier.*pass an instance"),
        ({"mine": 3}, InvalidInputError, "Method 'mine': expected a scikit-learn classifier"),
        ([], InvalidInputError, "Expected names of methods"),
        ("LP", InvalidInputError, "Expected names of methods"),
    ],
)
def test_what_is_no_method_is_refused(methods, error, message):
    with pytest.raises(error, match=message):
        candidates_of(methods, SMOKE, 0)


OWN = """
from sklearn.base import BaseEstimator, ClassifierMixin
import numpy as np
FACTOR = 2
def shift(X):
    return X + {shift}
class Mine(ClassifierMixin, BaseEstimator):
    def __init__(self, k=1):
        self.k = k
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self
    def predict(self, X):
        return (shift(X) * FACTOR).sum(axis=1) > {limit}
"""


def own_head(**numbers: int) -> ClassifierMixin:
    """A head as a notebook's cell defines it."""
    namespace = {"__name__": "__main__"}
    exec(OWN.format(**numbers), namespace)  # noqa: S102
    return namespace["Mine"]()


def test_the_code_of_own_heads_counts_and_that_of_the_functions_they_call():
    first = settings_hash(own_head(shift=1, limit=0))
    assert settings_hash(own_head(shift=1, limit=0)) == first
    assert settings_hash(own_head(shift=2, limit=0)) != first
    assert settings_hash(own_head(shift=1, limit=3)) != first
    assert "code" not in head_settings(NMTune())


def test_own_heads_whose_code_reads_what_cannot_be_told_are_refused():
    head = own_head(shift=1, limit=0)
    type(head).predict.__globals__["FACTOR"] = object()
    with pytest.raises(InvalidInputError, match=r"'FACTOR' is a object.*Pass it as a parameter"):
        settings_hash(head)
