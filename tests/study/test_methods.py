"""Methods: settings tell heads apart, in every process and whoever wrote them; every random state is the seed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.heads import LinearProbe, MLPTune, NMTune
from nml_kit.study import load_profile
from nml_kit.study.methods import candidates_of, expanded, head_settings, settings_hash
from nml_kit.tuning import Tuning

SMOKE = load_profile("smoke")


def hashes() -> list[str]:
    """Those of settings of many kinds."""
    grid = {"learning_rate": [0.001, 0.01], "weights": [0.01, (0.0, 0.1, 0.0)]}
    heads = [*expanded("NMTune", NMTune(), grid, seed=0).values(), a_pipeline(), Tuning(), LinearProbe(), MLPTune()]
    return [settings_hash(head) for head in heads]


def test_settings_differ_and_are_the_same_in_another_process():
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
    X = np.random.default_rng(0).normal(size=(20, 3))
    assert settings_hash(a_pipeline().fit(X, np.arange(20) % 2)) == settings_hash(a_pipeline())


def test_functions_among_the_settings_count_by_their_name_or_their_code():
    named = FunctionTransformer(np.log1p)
    assert head_settings(named)["parameters"]["func"].endswith("log1p")
    own = [settings_hash(FunctionTransformer(function)) for function in (lambda v: v, lambda v: v + 1, lambda v: v)]
    assert own[0] == own[2] != own[1]


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
