"""The exact probe against scikit-learn's LogisticRegression, its own gradient, and its errors."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from nml_kit.errors import InvalidInputError
from nml_kit.heads import ExactLinearProbe, regularisation_path
from nml_kit.heads import exact as exact_probe

TIGHT = 1e-13


def blobs(num_samples=200, num_features=12, num_classes=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    codes = np.arange(num_samples) % num_classes
    centres = 0.7 * rng.standard_normal((num_classes, num_features))
    return (centres[codes] + rng.standard_normal((num_samples, num_features)) + 3).astype(dtype), codes


def objective(probe, X, codes, C):
    """C · Σ loss + ½‖W‖² in float64, with the probe's own parameterisation."""
    logits = X.astype(np.float64) @ probe.coef_.astype(np.float64).T + probe.intercept_
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    loss = -log_softmax(logits, axis=1)[np.arange(len(codes)), codes].sum()
    return C * loss + np.square(probe.coef_.astype(np.float64)).sum() / 2


@parametrize_with_checks([ExactLinearProbe(Cs=[0.1, 1.0])])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize("C", [1e-4, 0.03, 1.0, 100.0])
def test_coefficients_and_probabilities_are_scikit_learns(C, num_classes):
    X, y = blobs(300, num_classes=num_classes)
    probe = ExactLinearProbe(C=C, tol=TIGHT).fit(X, y)
    # lbfgs stops at a gradient of about 1e-7 whatever its tol, the Newton solver does not.
    reference = LogisticRegression(C=C, tol=1e-12, solver="newton-cholesky").fit(X, y)
    assert probe.coef_.shape == reference.coef_.shape
    np.testing.assert_allclose(probe.coef_, reference.coef_, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probe.intercept_, reference.intercept_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probe.predict_proba(X), reference.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(probe.decision_function(X), reference.decision_function(X), rtol=1e-4, atol=1e-5)
    assert objective(probe, X, y, C) <= objective(reference, X, y, C) * (1 + 1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_objective_is_at_most_scikit_learns_along_the_default_path(dtype):
    X, y = load_digits(return_X_y=True)
    X, y = (X[:700] / 16).astype(dtype), y[:700]
    path = regularisation_path(X, y, 9)
    for C, coefficients, intercepts in zip(path.Cs, path.coefficients, path.intercepts, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            reference = LogisticRegression(C=C, max_iter=1000).fit(X, y)
        ours = ExactLinearProbe()
        ours.coef_, ours.intercept_ = coefficients, intercepts
        assert objective(ours, X, y, C) <= objective(reference, X, y, C) * (1 + 1e-6), C


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("C", [0.01, 1.0, 1000.0])
def test_gradient_vanishes_at_the_solution(C, num_classes):
    X, y = blobs(400, num_classes=num_classes)
    probe = ExactLinearProbe(C=C, tol=1e-14).fit(X, y)
    residuals = probe.predict_proba(X) - np.eye(num_classes)[y]
    if num_classes == 2:
        residuals = residuals[:, 1:]
    np.testing.assert_allclose(C * residuals.T @ X + probe.coef_, 0, atol=1e-5 * C * len(X))
    np.testing.assert_allclose(residuals.mean(axis=0), 0, atol=1e-7)


def test_path_equals_solving_each_alone_in_any_order():
    X, y = blobs()
    Cs = np.array([3.0, 0.01, 100.0, 0.3])
    path = regularisation_path(X, y, Cs, tol=TIGHT)
    np.testing.assert_array_equal(path.Cs, Cs)
    assert path.n_iter.shape == (4,)
    order = np.array([2, 0, 3, 1])
    shuffled = regularisation_path(X, y, Cs[order], tol=TIGHT)
    np.testing.assert_array_equal(shuffled.coefficients, path.coefficients[order])
    np.testing.assert_array_equal(shuffled.intercepts, path.intercepts[order])
    for C, coefficients in zip(Cs, path.coefficients, strict=True):
        alone = ExactLinearProbe(C=C, tol=TIGHT).fit(X, y)
        np.testing.assert_allclose(coefficients, alone.coef_, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_what_remains_is_of_the_order_of_the_tolerance(dtype, spread):
    X, y = blobs(400, num_features=30, num_classes=5)
    X = (X * np.linspace(1, spread, 30)).astype(dtype)
    Cs = np.logspace(-3, 2, 7)
    path = regularisation_path(X, y, Cs)
    exact = regularisation_path(X.astype(np.float64), y, Cs, tol=TIGHT)
    for place, C in enumerate(Cs):
        values = []
        for solution in (path, exact):
            probe = ExactLinearProbe()
            probe.coef_, probe.intercept_ = solution.coefficients[place], solution.intercepts[place]
            values.append(objective(probe, X, y, C))
        assert values[1] * (1 - 1e-9) <= values[0] <= values[1] + 1e-4 * C * len(X)  # of the mean loss


def test_penalties_may_repeat():
    X, y = blobs()
    path = regularisation_path(X, y, [1.0, 0.1, 1.0], tol=TIGHT)
    np.testing.assert_array_equal(path.coefficients[0], path.coefficients[2])


def test_choice_of_c_equals_an_explicit_loop_and_is_refitted_to_all():
    X, y = blobs(240, num_features=30, num_classes=4)
    Cs = [1e-3, 1.0, 1e-2, 100.0]
    probe = ExactLinearProbe(Cs=Cs, random_state=3, tol=TIGHT).fit(X, y)
    held_out = exact_probe._held_out(y, 0.2, np.random.RandomState(3))
    assert np.bincount(y[held_out]).tolist() == [12, 12, 12, 12]
    scores = [
        ExactLinearProbe(C=C, tol=TIGHT).fit(X[~held_out], y[~held_out]).score(X[held_out], y[held_out]) for C in Cs
    ]
    np.testing.assert_allclose(probe.validation_scores_, scores)
    best = min(C for C, score in zip(Cs, scores, strict=True) if score == max(scores))
    assert best == probe.C_
    np.testing.assert_array_equal(probe.Cs_, Cs)
    np.testing.assert_allclose(probe.coef_, ExactLinearProbe(C=best, tol=TIGHT).fit(X, y).coef_, rtol=1e-5, atol=1e-6)
    again = ExactLinearProbe(Cs=Cs, random_state=3, tol=TIGHT).fit(X, y)
    assert again.coef_.tobytes() == probe.coef_.tobytes()


def test_classes_of_one_sample_stay_in_training():
    X, y = blobs(60)
    y[:2] = [7, 8]
    probe = ExactLinearProbe(Cs=4).fit(X, y)
    assert probe.classes_.tolist() == [0, 1, 2, 7, 8]
    assert not exact_probe._held_out(np.unique(y, return_inverse=True)[1], 0.9, np.random.RandomState(0))[:2].any()


def test_fewer_samples_than_features():
    X, y = blobs(40, num_features=90)
    for C in (0.01, 1.0):
        probe = ExactLinearProbe(C=C, tol=TIGHT).fit(X, y)
        reference = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(X, y)
        np.testing.assert_allclose(probe.coef_, reference.coef_, rtol=1e-4, atol=1e-6)
    chosen = ExactLinearProbe(Cs=[0.01, 1.0], tol=TIGHT).fit(X, y)
    assert chosen.coef_.shape == (3, 90)


def test_constant_duplicated_and_rank_deficient_features():
    X, y = blobs(150, num_features=6)
    wide = np.hstack([X, X, np.full((150, 2), 5.0), X @ np.ones((6, 3))])
    probe = ExactLinearProbe(tol=TIGHT).fit(wide, y)
    reference = LogisticRegression(tol=1e-10, max_iter=10_000).fit(wide, y)
    np.testing.assert_allclose(probe.predict_proba(wide), reference.predict_proba(wide), atol=1e-5)
    np.testing.assert_allclose(probe.coef_[:, 12:14], 0, atol=1e-12)
    constant = ExactLinearProbe().fit(np.ones((150, 3)), y)
    np.testing.assert_allclose(constant.predict_proba(np.ones((1, 3))), [[1 / 3] * 3], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_classes", [2, 5])
def test_separable_data_with_weak_penalties(dtype, num_classes):
    X, y = blobs(100, num_features=40, num_classes=num_classes, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = regularisation_path(X, y, 9)
        cold = ExactLinearProbe(C=1e4).fit(X, y)
    assert np.isfinite(path.coefficients).all()
    assert cold.score(X, y) == 1.0
    assert (np.diff(np.square(path.coefficients).sum(axis=(1, 2))) >= 0).all()


def test_non_convergence_warns_with_the_penalty():
    X, y = blobs()
    with pytest.warns(ConvergenceWarning, match=r"within max_iter=1 iterations, got none at C = 100\. Raise max_iter"):
        ExactLinearProbe(C=100.0, max_iter=1).fit(X, y)


def test_arrays_tensors_and_maps_give_the_same_probe(tmp_path):
    X, y = blobs(dtype=np.float16)
    expected = ExactLinearProbe().fit(X.astype(np.float32), y)
    np.save(tmp_path / "features.npy", X)
    for features, labels in [
        (X, y),
        (np.load(tmp_path / "features.npy", mmap_mode="r"), y.tolist()),
        (torch.from_numpy(X), torch.from_numpy(y)),
    ]:
        assert ExactLinearProbe().fit(features, labels).coef_.tobytes() == expected.coef_.tobytes()
        assert regularisation_path(features, labels, [1.0]).coefficients[0].tobytes() == expected.coef_.tobytes()


@pytest.mark.parametrize("labels", [["b", "a", "c"], [7, -2, 100], ["x", "y", "x"]])
def test_labels_of_any_kind_come_back(labels):
    X, codes = blobs(dtype=np.float32)
    y = np.asarray(labels)[codes]
    probe = ExactLinearProbe().fit(X, y)
    assert probe.predict(X).dtype == y.dtype
    np.testing.assert_array_equal(probe.classes_[probe.predict_proba(X).argmax(axis=1)], probe.predict(X))
    np.testing.assert_allclose(softmax(np.log(probe.predict_proba(X)), axis=1), probe.predict_proba(X))


@pytest.mark.parametrize("fit", [lambda X, y: ExactLinearProbe().fit(X, y), regularisation_path])
class TestBadInput:
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_not_finite_features(self, fit, bad):
        X, y = blobs()
        X[17, 3] = bad
        with pytest.raises(InvalidInputError, match="Expected finite features, got NaN or inf in row 17"):
            fit(X, y)

    def test_lengths_differ(self, fit):
        X, y = blobs()
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[200, 199\]"):
            fit(X, y[1:])

    def test_one_class(self, fit):
        with pytest.raises(InvalidInputError, match=r"at least two classes in y, got one class: .*'cat'.* \(200 samp"):
            fit(blobs()[0], ["cat"] * 200)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": 0.0}, r"C to be positive and finite, .* got \[0.0\]"),
        ({"Cs": [1.0, np.nan]}, "C to be positive and finite"),
        ({"Cs": []}, "C to be positive and finite"),
        ({"Cs": 0}, "a number of Cs of at least 1, got 0"),
        ({"validation_fraction": 1.0}, "a validation_fraction between 0 and 1, got 1.0"),
        ({"tol": 0.0}, "a tol between 0 and 1, got 0.0"),
        ({"max_iter": 0}, "max_iter of at least 1, got 0"),
        ({"Cs": 3, "validation_fraction": 1e-6}, "Expected samples to validate on, got none from 200"),
    ],
)
def test_settings(settings, message):
    with pytest.raises(InvalidInputError, match=message):
        ExactLinearProbe(**settings).fit(*blobs())
