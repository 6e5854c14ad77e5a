"""NMTune's terms against the textbook formulas, written here from the paper in float64."""

import numpy as np
import pytest
import torch

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.heads import TERM_WEIGHTS, nmtune_terms

RECIPES = ["paper", "reference"]
SHAPES = [(8, 24), (64, 65), (16, 16), (40, 12), (2, 7), (3, 1)]


def textbook_terms(Z, F, recipe):
    """The formulas as the paper prints them: full SVD, D×D covariance, autograd."""
    num_features = Z.shape[1]
    difference = torch.nn.functional.normalize(F) - torch.nn.functional.normalize(Z)
    mse = difference.square().mean() if recipe == "reference" else difference.square().sum(1).mean()
    covariance = torch.atleast_2d(torch.cov(Z.T))
    cov = (covariance - torch.diag(torch.diag(covariance))).square().sum() / num_features
    sigma = torch.linalg.svdvals(Z)
    svd = -sigma[: 5 if recipe == "reference" else 1].mean() / sigma.sum()
    return mse, cov, svd


def batch(num_samples, num_features, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.2, 2.0, num_features, dtype=torch.float64)
    Z = torch.randn(num_samples, num_features, generator=generator, dtype=torch.float64) * scales + 0.5
    F = torch.randn(num_samples, num_features, generator=generator, dtype=torch.float64)
    return Z.to(dtype), F.to(dtype)


def value_and_gradients(terms, Z, F, recipe, term):
    Z, F = Z.clone().requires_grad_(), F.clone().requires_grad_()
    value = terms(Z, F, recipe=recipe)[term]
    gradients = torch.autograd.grad(value, (Z, F), allow_unused=True, materialize_grads=True)
    return value.detach(), *gradients


def assert_close(actual, expected, relative):
    scale = max(expected.abs().max().item(), 1e-300)
    assert (actual.double() - expected).abs().max().item() <= relative * scale


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("term", [0, 1, 2], ids=["mse", "cov", "svd"])
def test_values_and_gradients_equal_the_textbook_in_float64(recipe, shape, term):
    Z, F = batch(*shape)
    actual = value_and_gradients(nmtune_terms, Z, F, recipe, term)
    expected = value_and_gradients(textbook_terms, Z, F, recipe, term)
    for ours, theirs in zip(actual, expected, strict=True):
        if theirs.abs().max() < 1e-12:  # one feature: no off-diagonal, and σ₁/Σσ = 1 whatever Z is
            assert ours.abs().max() < 1e-12
        else:
            assert_close(ours, theirs, 1e-8)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_gradient_of_a_weighted_sum_equals_the_textbook(recipe, shape):
    Z, F = batch(*shape, seed=1)

    def weighted(terms):
        leaf = Z.clone().requires_grad_()
        values = terms(leaf, F, recipe=recipe)
        return torch.autograd.grad(sum(w * v for w, v in zip((0.7, 0.2, 3.0), values, strict=True)), leaf)[0]

    assert_close(weighted(nmtune_terms), weighted(textbook_terms), 1e-8)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(4, 9), (6, 6), (9, 4)], ids=str)
def test_gradcheck(recipe, shape):
    Z, F = (tensor.requires_grad_() for tensor in batch(*shape, seed=2))
    assert torch.autograd.gradcheck(lambda z, f: nmtune_terms(z, f, recipe=recipe), (Z, F))


def degenerate_batches(shape):
    Z, _ = batch(*shape, seed=3)
    rank_two = Z[:, :2] @ torch.randn(2, shape[1], generator=torch.Generator().manual_seed(4)).double()
    with_zero_rows = Z.clone()
    with_zero_rows[::2] = 0
    return {
        "duplicated": Z[:2].repeat(shape[0] // 2, 1),
        "rank two": rank_two,
        "constant": torch.full(shape, 0.3, dtype=torch.float64),
        "centred": Z - Z.mean(0),
        "collapsed": Z[:1] + 1e-9 * Z,
        "zero rows": with_zero_rows,
        "all zero": torch.zeros(shape, dtype=torch.float64),
        "one feature alive": Z * (torch.arange(shape[1]) == 0),
        "tiny": Z * 1e-30,
        "huge": Z * 1e8,
        "one sample": Z[:1],
    }


DEGENERATE = list(degenerate_batches((8, 24)))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(8, 24), (12, 12), (24, 8)], ids=str)
@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_degenerate_batches_have_finite_terms_and_gradients(recipe, shape, name, dtype):
    Z = degenerate_batches(shape)[name].to(dtype)
    F = batch(*Z.shape, seed=5)[1].to(dtype)
    for term in range(3):
        for result in value_and_gradients(nmtune_terms, Z, F, recipe, term):
            assert torch.isfinite(result).all()


def svd_gradient_over_nonzero_part(Z, leading):
    """U diag(h) Vᵀ over the singular values above rounding, h = ∂svd/∂σ."""
    U, sigma, Vt = torch.linalg.svd(Z, full_matrices=False)
    rank = int((sigma > 1e-9 * sigma[0]).sum())
    U, sigma, Vt = U[:, :rank], sigma[:rank], Vt[:rank]
    count = min(leading, min(Z.shape))
    head = torch.zeros(rank, dtype=Z.dtype)
    head[:count] = 1.0
    h = (head * sigma).sum() / (count * sigma.sum() ** 2) - head / (count * sigma.sum())
    return (U * h) @ Vt


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(8, 24), (12, 12), (24, 8)], ids=str)
@pytest.mark.parametrize("name", ["duplicated", "rank two", "centred", "one feature alive", "zero rows"])
def test_svd_gradient_of_rank_deficient_batches(recipe, shape, name):
    Z = degenerate_batches(shape)[name]
    F = batch(*shape, seed=5)[1]
    _, actual, _ = value_and_gradients(nmtune_terms, Z, F, recipe, 2)
    expected = svd_gradient_over_nonzero_part(Z, 5 if recipe == "reference" else 1)
    assert (actual - expected).abs().max() <= 1e-7 * max(expected.abs().max(), 1 / Z.norm())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["duplicated", "rank two", "zero rows", "one feature alive"])
def test_svd_gradient_matches_finite_differences_along_moves_that_keep_the_rank(recipe, name):
    Z = degenerate_batches((8, 24))[name]
    F = batch(8, 24, seed=5)[1]
    _, gradient, _ = value_and_gradients(nmtune_terms, Z, F, recipe, 2)
    generator = torch.Generator().manual_seed(6)
    step = 1e-5
    # Row operations: (I + tB) Z has the rank of Z, so Σσ is differentiable along them.
    direction = torch.randn(8, 8, generator=generator, dtype=torch.float64) @ Z
    above, below = (nmtune_terms(Z + s * step * direction, F, recipe=recipe)[2] for s in (1, -1))
    assert ((above - below) / (2 * step)).item() == pytest.approx((gradient * direction).sum().item(), abs=1e-8)


def test_closed_forms():
    F = torch.eye(3, dtype=torch.float64)
    mse, cov, svd = nmtune_terms(-2 * F, F)
    assert mse.item() == pytest.approx(4.0)  # opposite unit vectors
    assert svd.item() == pytest.approx(-1 / 3)  # flat spectrum
    # The covariance of the rows −2·I has off-diagonal entries −(4/3)/2: six of them, over D = 3.
    assert cov.item() == pytest.approx(6 * (2 / 3) ** 2 / 3)
    reference = nmtune_terms(-2 * F, F, recipe="reference")
    assert reference[0].item() == pytest.approx(4 / 3)
    assert reference[2].item() == pytest.approx(-1 / 3)  # three values: the mean of all


def test_all_zero_is_defined():
    Z = torch.zeros(4, 6, requires_grad=True)
    F = torch.ones(4, 6)
    mse, cov, svd = nmtune_terms(Z, F)
    assert (mse.item(), cov.item(), svd.item()) == (pytest.approx(1.0), 0.0, 0.0)
    (mse + cov + svd).backward()
    assert torch.equal(Z.grad, torch.zeros(4, 6))


def test_one_sample_has_no_covariance():
    Z, F = batch(1, 5)
    mse, cov, svd = nmtune_terms(Z, F)
    assert cov.item() == 0.0
    assert svd.item() == pytest.approx(-1.0)
    assert 0 <= mse.item() <= 4


@pytest.mark.parametrize("shape", [(64, 512), (96, 32)], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_float32_keeps_six_digits(shape, recipe):
    Z, F = batch(*shape, seed=7, dtype=torch.float32)
    for term in range(3):
        actual = value_and_gradients(nmtune_terms, Z, F, recipe, term)
        expected = value_and_gradients(textbook_terms, Z.double(), F.double(), recipe, term)
        for ours, theirs in zip(actual, expected, strict=True):
            assert ours.dtype == torch.float32
            assert_close(ours, theirs, 1e-6)


def test_bfloat16_is_promoted():
    Z, F = batch(16, 32, dtype=torch.bfloat16)
    value, gradient, _ = value_and_gradients(nmtune_terms, Z, F, "paper", 2)
    expected, expected_gradient, _ = value_and_gradients(textbook_terms, Z.double(), F.double(), "paper", 2)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close(gradient, expected_gradient, 2**-8)  # one rounding to bfloat16


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)], ids=str)
def test_each_gradient_owns_its_memory(shape):
    Z, F = batch(*shape)
    Z.requires_grad_()
    terms = nmtune_terms(Z, F)
    gradients = [torch.autograd.grad(term, Z, retain_graph=True)[0] for term in terms]
    kept = [gradient.clone() for gradient in gradients]
    assert not torch.equal(gradients[0], gradients[2])
    sum(terms).backward()
    torch.testing.assert_close(Z.grad, sum(kept), rtol=1e-12, atol=1e-15)
    assert all(torch.equal(gradient, copy) for gradient, copy in zip(gradients, kept, strict=True))


def test_rotating_the_features_leaves_mse_and_svd():
    Z, F = batch(10, 14, seed=8)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((14, 14)))[0])
    before, after = nmtune_terms(Z, F), nmtune_terms(Z @ rotation, F @ rotation)
    assert after[0].item() == pytest.approx(before[0].item(), rel=1e-12)
    assert after[2].item() == pytest.approx(before[2].item(), rel=1e-12)


def test_weights_of_both_recipes():
    assert TERM_WEIGHTS == {"paper": (0.01, 0.01, 0.01), "reference": (1.0, 0.04, 0.001)}
    with pytest.raises(TypeError):
        TERM_WEIGHTS["paper"] = (0, 0, 0)


def test_bad_input_is_named():
    Z, F = batch(4, 6)
    with pytest.raises(UnknownNameError, match="Unknown recipe 'papre': did you mean 'paper'"):
        nmtune_terms(Z, F, recipe="papre")
    with pytest.raises(InvalidInputError, match=r"one shape .* got Z \(4, 6\) and F \(3, 6\)"):
        nmtune_terms(Z, F[:3])
    with pytest.raises(InvalidInputError, match=r"got torch\.int64"):
        nmtune_terms(Z.long(), F)
    with pytest.raises(InvalidInputError, match="got ndarray"):
        nmtune_terms(Z, F.numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("broken", [0, 1], ids=["Z", "F"])
def test_not_finite_input_is_an_error(bad, broken):
    pair = batch(4, 6)
    pair[broken][1, 2] = bad
    with pytest.raises(InvalidInputError, match="finite Z and F, got NaN or inf"):
        nmtune_terms(*pair)
