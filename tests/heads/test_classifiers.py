"""Heads as scikit-learn classifiers, their training against plain PyTorch, and their errors."""

import os
import subprocess
import sys
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.heads import ExactLinearProbe, LinearProbe, MLPTune, NMTune, batch_bounds, fit_heads, nmtune_terms
from nml_kit.heads.networks import Design, build_network
from nml_kit.spectrum import singular_value_entropy, singular_values

HEADS = [LinearProbe, MLPTune, NMTune]
RECIPES = ["paper", "reference"]


def blobs(num_samples=200, num_features=12, num_classes=3, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    codes = np.arange(num_samples) % num_classes
    centres = 1.5 * rng.standard_normal((num_classes, num_features))
    return (centres[codes] + rng.standard_normal((num_samples, num_features))).astype(dtype), codes


def weights_of(head):
    return {name: tensor.numpy() for name, tensor in head.module_.state_dict().items()}


def assert_same_bytes(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


# The only check that skips itself is check_array_api_input, unless scipy was imported with SCIPY_ARRAY_API set:
# it runs in the test below.
@parametrize_with_checks([LinearProbe(epochs=20, learning_rate=0.1), NMTune(epochs=20, learning_rate=0.01)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_array_api_check_in_a_process_of_its_own():
    script = (
        "from sklearn.utils.estimator_checks import check_array_api_input as check\n"
        "from nml_kit.heads import ExactLinearProbe, LinearProbe, NMTune\n"
        "for head in (LinearProbe(epochs=1), NMTune(epochs=1), ExactLinearProbe()):\n"
        "    check(type(head).__name__, head, 'numpy', expect_only_array_outputs=False)\n"
        "print('passed')"
    )
    environment = {**os.environ, "SCIPY_ARRAY_API": "1"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "passed", run.stderr


def test_linear_probe_is_as_accurate_as_logistic_regression():
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    probe = LinearProbe().fit(X[:1200], y[:1200])
    reference = LogisticRegression(max_iter=2000).fit(X[:1200], y[:1200])
    assert abs(probe.score(X[1200:], y[1200:]) - reference.score(X[1200:], y[1200:])) < 0.015
    agreement = (probe.predict(X[1200:]) == reference.predict(X[1200:])).mean()
    assert agreement > 0.96


@pytest.mark.parametrize("widths", [(), (7,), (7, 5), (6, 7, 5)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_linear_and_tuned_heads_train_as_plain_pytorch_does(recipe, widths):
    """The in-place gradients, reused buffers and schedule against torch.nn, AdamW and CosineAnnealingLR."""
    X, y = blobs(65, 10, dtype=np.float64)
    head = NMTune(recipe=recipe, weights=(0.3, 0.2, 0.1), hidden=widths, epochs=3, batch_size=16, dtype="float64")
    head.fit(X, y)

    init_seed, order_seed = np.random.RandomState(0).randint(np.iinfo(np.int32).max, size=2)
    start = build_network(10, 3, Design(recipe, widths), torch.Generator().manual_seed(int(init_seed))).double()
    layers = []
    for inputs, width in zip((10, *widths), widths, strict=False):
        norm = [torch.nn.BatchNorm1d(width)] if recipe == "reference" else []
        layers += [torch.nn.Linear(inputs, width), *norm, torch.nn.ReLU()]
    layers.append(torch.nn.Linear((10, *widths)[-1], 10))
    mlp, classifier = torch.nn.Sequential(*layers).double(), torch.nn.Linear(10, 3).double()
    scale = torch.ones(10, dtype=torch.float64, requires_grad=True)
    mlp.load_state_dict((start.tuner if recipe == "paper" else start.tuner.mlp).state_dict())
    classifier.load_state_dict(start.classifier.state_dict())
    parameters = [*mlp.parameters(), *classifier.parameters(), *([scale] if recipe == "reference" else [])]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * 4)
    generator = torch.Generator().manual_seed(int(order_seed))
    for _ in range(3):
        order = torch.randperm(65, generator=generator)
        for index in (order[:16], order[16:32], order[32:48], order[48:]):  # the last one joins
            F, target = torch.from_numpy(X)[index], torch.from_numpy(y)[index]
            Z = scale * mlp(F) + F if recipe == "reference" else mlp(F)
            terms = nmtune_terms(Z, F, recipe=recipe)
            loss = torch.nn.functional.cross_entropy(classifier(Z), target)
            loss = loss + 0.3 * terms[0] + 0.2 * terms[1] + 0.1 * terms[2]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    mlp.eval()
    with torch.no_grad():
        F = torch.from_numpy(X)
        Z = scale * mlp(F) + F if recipe == "reference" else mlp(F)
        probabilities = torch.softmax(classifier(Z), 1)
    np.testing.assert_allclose(head.transform(X), Z.numpy(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(head.predict_proba(X), probabilities.numpy(), rtol=1e-8)


@pytest.mark.parametrize("recipe", RECIPES)
def test_nmtune_without_weights_is_mlp_tune_to_the_bit(recipe):
    X, y = blobs()
    tuned = MLPTune(recipe=recipe, epochs=4).fit(X, y)
    for weights in (0, (0.0, 0.0, 0.0)):
        assert_same_bytes(weights_of(NMTune(recipe=recipe, weights=weights, epochs=4).fit(X, y)), weights_of(tuned))


def test_weights_are_the_recipes_or_lambda_or_three_numbers():
    X, y = blobs()

    def fitted(**settings):
        return weights_of(NMTune(epochs=2, **settings).fit(X, y))

    assert_same_bytes(fitted(), fitted(weights=0.01))
    assert_same_bytes(fitted(weights=0.2), fitted(weights=(0.2, 0.2, 0.2)))
    assert_same_bytes(fitted(recipe="reference"), fitted(recipe="reference", weights=(1.0, 0.04, 0.001)))
    assert fitted()["classifier.weight"].tobytes() != fitted(weights=0.02)["classifier.weight"].tobytes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_width_is_a_tuple_of_one_and_deep_heads_train_side_by_side(recipe):
    X, y = blobs(dtype=np.float64)
    wide, deep = ({"recipe": recipe, "epochs": 2, "dtype": "float64", "hidden": hidden} for hidden in (9, (9, 8)))
    assert_same_bytes(weights_of(NMTune(**wide).fit(X, y)), weights_of(NMTune(**wide | {"hidden": (9,)}).fit(X, y)))
    heads = [NMTune(weights=weight, random_state=seed, **deep) for weight in (0, 0.1) for seed in (0, 1)]
    for together, head in zip(fit_heads(X, y, heads), heads, strict=True):
        np.testing.assert_allclose(together.predict_proba(X), head.fit(X, y).predict_proba(X), rtol=1e-5)


@pytest.mark.parametrize(("recipe", "hidden"), [("paper", 80), ("reference", 320)])
def test_shape_of_the_tuner_of_each_recipe(recipe, hidden):
    X, y = blobs(num_features=80)
    shapes = {name: array.shape for name, array in weights_of(MLPTune(recipe=recipe, epochs=1).fit(X, y)).items()}
    assert (hidden, 80) in shapes.values()
    assert (80, hidden) in shapes.values()
    assert shapes["classifier.weight"] == (3, 80)
    narrow = weights_of(MLPTune(recipe=recipe, hidden=5, epochs=1).fit(X, y))
    assert (5, 80) in {array.shape for array in narrow.values()}


def test_reference_tuner_starts_as_mlp_plus_identity():
    network = build_network(6, 3, Design("reference", (24,)), torch.Generator().manual_seed(0)).eval()
    F = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.tuner(F), network.tuner.mlp(F) + F)
    assert [type(layer).__name__ for layer in network.tuner.mlp] == ["Linear", "BatchNorm", "ReLU", "Linear"]


def test_classifier_starts_kaiming_uniform_without_bias():
    network = build_network(600, 50, Design(), torch.Generator().manual_seed(0))
    weight, bias = network.classifier.weight, network.classifier.bias
    bound = (6 / 600) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not bias.any()


@pytest.mark.parametrize("recipe", RECIPES)
def test_nmtune_raises_the_entropy_of_low_rank_features(recipe):
    """Six directions in 32 dimensions: the spectrum of Z is flatter with the terms than without (seen 6 of 6)."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 4
    latent = rng.standard_normal((4, 6))[y] + rng.standard_normal((600, 6))
    X = latent @ rng.standard_normal((6, 32)) + 0.05 * rng.standard_normal((600, 32))
    plain, regularised = (
        head.set_params(recipe=recipe, epochs=40).fit(X[:400], y[:400]) for head in (MLPTune(), NMTune())
    )
    entropies = [singular_value_entropy(singular_values(head.transform(X[400:]))) for head in (plain, regularised)]
    assert entropies[1] > entropies[0] + 0.05


@pytest.mark.parametrize("head", HEADS)
def test_same_seed_gives_the_same_bytes_and_leaves_global_state_alone(head):
    X, y = blobs()
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002
    state, numpy_state, threads = torch.get_rng_state(), np.random.get_state()[1], torch.get_num_threads()  # noqa: NPY002
    first = head(epochs=2, random_state=3).fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert torch.get_num_threads() == threads
    torch.manual_seed(12)
    assert_same_bytes(weights_of(head(epochs=2, random_state=3).fit(X, y)), weights_of(first))
    other = weights_of(head(epochs=2, random_state=4).fit(X, y))
    assert other["classifier.weight"].tobytes() != weights_of(first)["classifier.weight"].tobytes()


@pytest.mark.parametrize("head", HEADS)
def test_arrays_tensors_and_maps_give_the_same_head(head, tmp_path):
    X, y = blobs(dtype=np.float16)
    expected = head(epochs=1).fit(X.astype(np.float32), y)
    path = tmp_path / "features.npy"
    np.save(path, X)
    for features, labels in [
        (X, y),
        (np.load(path, mmap_mode="r"), y.tolist()),
        (torch.from_numpy(X), torch.from_numpy(y)),
        (torch.from_numpy(X).float().requires_grad_(), y.astype(np.uint8)),
    ]:
        fitted = head(epochs=1).fit(features, labels)
        assert_same_bytes(weights_of(fitted), weights_of(expected))
        np.testing.assert_array_equal(fitted.predict_proba(features), expected.predict_proba(X))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool])
def test_a_narrow_or_wide_dtype_gives_what_its_conversion_gives(stored, dtype):
    X, y = blobs(130)
    features = torch.from_numpy(X).to(stored)
    converted = features.to(getattr(torch, dtype))
    given = [kind(epochs=2, dtype=dtype) for kind in HEADS]
    for kept, whole in zip(fit_heads(features, y, given), fit_heads(converted.numpy(), y, given), strict=True):
        assert_same_bytes(weights_of(kept), weights_of(whole))
        assert kept.loss_curve_ == whole.loss_curve_
        np.testing.assert_array_equal(kept.predict_proba(features), whole.predict_proba(converted))


@pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, lambda X: np.repeat(X, 2, axis=1)[:, ::2], lambda X: torch.from_numpy(X).T.contiguous().T],
)
def test_any_layout_in_memory_gives_the_same_head(layout):
    X, y = blobs()
    expected, found = MLPTune(epochs=1).fit(X, y), MLPTune(epochs=1).fit(layout(X), y)
    assert_same_bytes(weights_of(found), weights_of(expected))
    np.testing.assert_array_equal(found.transform(layout(X)), expected.transform(X))


def test_reversed_rows_are_read_in_their_order():
    X, y = blobs()
    found = LinearProbe(epochs=1).fit(X[::-1], y[::-1])
    assert_same_bytes(weights_of(found), weights_of(LinearProbe(epochs=1).fit(X[::-1].copy(), y[::-1])))


@pytest.mark.filterwarnings("error")
def test_read_only_features_are_not_written_to_and_do_not_warn(tmp_path):
    X, y = blobs()
    before = X.tobytes()
    X.flags.writeable = False
    np.save(tmp_path / "x.npy", X)
    for features in (X, np.load(tmp_path / "x.npy", mmap_mode="r")):
        NMTune(epochs=1).fit(features, y).transform(features)
        assert features.tobytes() == before


# The limit counts memory that is the process's own, not the pages of a file, which the system drops at will.
_UNDER_A_LIMIT = r"""
import pathlib, re, resource, sys
import numpy as np
from nml_kit.heads import LinearProbe, MLPTune, fit_heads

X = np.load(sys.argv[1], mmap_mode="r")
y = np.arange(len(X)) // 64 % 2
heads = [LinearProbe(epochs=1, batch_size=512), MLPTune(hidden=8, epochs=1, batch_size=512)]
fit_heads(X[:8192], y[:8192], heads)[0].predict(X[:8192])
own = 1024 * int(re.search(r"VmData:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_DATA, (own + X.nbytes // 2, resource.RLIM_INFINITY))
fit_heads(X, y, heads)[1].predict(X)
try:
    np.copy(X)
except MemoryError:
    print("no room for a copy")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the memory that is allocated")
def test_a_mapped_matrix_is_neither_converted_nor_copied_as_a_whole(tmp_path):
    """101 MB in the file, 201 MB in the dtype of the heads, and room for half of the file's."""
    X = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float16, shape=(98_304, 512))
    X[::64, 0] = np.arange(1536) % 2
    X.flush()
    command = [sys.executable, "-c", _UNDER_A_LIMIT, str(tmp_path / "x.npy")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "no room for a copy", run.stderr


@pytest.mark.parametrize("row", [0, 4095, 4096, 9999])
def test_the_first_row_that_is_not_finite_is_named_in_any_block(row):
    X, y = blobs(10_000, 4, dtype=np.float16)
    fitted = LinearProbe(epochs=1).fit(X[:100], y[:100])
    X[row, 1] = np.inf
    X[9999, 3] = np.nan
    for features in (X, torch.from_numpy(X)):
        for call in (lambda X: LinearProbe().fit(X, y), fitted.predict):
            with pytest.raises(InvalidInputError, match=rf"got NaN or inf in row {row}\."):
                call(features)


def test_what_overflows_in_the_dtype_of_the_head_is_named():
    X, y = blobs(dtype=np.float64)
    X[3, 0] = 1e39
    with pytest.raises(InvalidInputError, match="got NaN or inf in row 3"):
        LinearProbe().fit(X, y)


@pytest.mark.parametrize("labels", [["b", "a", "c"], [7, -2, 100], np.array(["x", "y", "z"], object)])
def test_labels_of_any_kind_come_back(labels):
    X, codes = blobs()
    y = np.asarray(labels)[codes]
    head = LinearProbe(epochs=20).fit(X, y)
    np.testing.assert_array_equal(head.classes_, np.unique(y))
    assert head.predict(X).dtype == y.dtype
    assert head.score(X, y) > 0.95
    columns = np.argmax(head.predict_proba(X), axis=1)
    np.testing.assert_array_equal(head.classes_[columns], head.predict(X))


def test_pipeline_grid_search_and_clone():
    X, y = blobs()
    pipeline = make_pipeline(StandardScaler(), NMTune(epochs=30, learning_rate=5e-3))
    search = GridSearchCV(pipeline, {"nmtune__weights": [0.0, (0.1, 0.0, 0.2)]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.8
    copied = clone(NMTune(recipe="reference", weights=(1, 2, 3), hidden=9))
    assert copied.get_params()["weights"] == (1, 2, 3)
    transformed = make_pipeline(MLPTune(epochs=30), LogisticRegression()).fit(X, y)
    assert transformed.score(X, y) > 0.9


@pytest.mark.parametrize("head", HEADS)
def test_loss_curve_and_epochs(head):
    X, y = blobs()
    fitted = head(epochs=12).fit(X, y)
    assert len(fitted.loss_curve_) == 12
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert fitted.n_features_in_ == 12


def test_the_default_is_30_epochs_or_as_many_as_give_500_steps():
    X, y = blobs(40)
    assert len(LinearProbe(batch_size=20).fit(X, y).loss_curve_) == 250
    assert len(LinearProbe(batch_size=2).fit(X, y).loss_curve_) == 30


@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [(2, [(0, 2)]), (64, [(0, 64)]), (65, [(0, 65)]), (66, [(0, 64), (64, 66)]), (129, [(0, 64), (64, 129)])],
)
def test_a_last_batch_of_one_joins_the_one_before(num_samples, expected):
    assert batch_bounds(num_samples, 64) == expected


@pytest.mark.parametrize("num_samples", [2, 3, 65])
def test_smallest_data_sets_train(num_samples):
    X, y = blobs(num_samples, num_classes=2)
    assert np.isfinite(NMTune(recipe="reference", batch_size=2, epochs=2).fit(X, y).transform(X)).all()


def test_constant_features_train():
    X, y = np.ones((40, 5)), np.arange(40) % 2
    for recipe in RECIPES:
        assert np.isfinite(NMTune(recipe=recipe, weights=1.0, epochs=3).fit(X, y).predict_proba(X)).all()
    assert np.isfinite(NMTune(epochs=3).fit(np.zeros((40, 5)), y).predict_proba(X)).all()


def test_every_sample_is_seen_once_an_epoch():
    """With a learning rate of ~0 the epoch's loss is the mean loss of all samples at the start."""
    X, y = blobs(129)
    probe = LinearProbe(epochs=2, learning_rate=1e-12).fit(X, y)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(probe.module_(torch.from_numpy(X))[1], torch.from_numpy(y)).item()
    assert probe.loss_curve_ == pytest.approx([expected, expected], rel=1e-5)
    assert all(parameter.grad is None for parameter in probe.module_.parameters())


def test_prediction_of_a_row_does_not_depend_on_the_others():
    X, y = blobs()
    head = NMTune(epochs=2).fit(X, y)
    whole = head.predict_proba(X)
    single = np.concatenate([head.predict_proba(X[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(single, whole[:20], rtol=1e-12)


SWEEPS = {
    "one order": [{"learning_rate": rate, "weight_decay": d} for rate in (1e-3, 1e-2) for d in (0.0, 0.1)],
    "seeds": [{"random_state": seed} for seed in range(4)],
    "mixed": [{"random_state": 0, "weight_decay": 0.1}, {"random_state": 1}, {"random_state": 0}, {"epochs": 2}],
}
TUNED = {
    "terms": [{"weights": weights} for weights in (0.0, 0.3, (0.0, 1.0, 0.0))],
    "terms, rates and seeds": [
        {"weights": 0.1 * i, "learning_rate": 10**-i, "random_state": i % 2} for i in range(1, 5)
    ],
}


@pytest.mark.parametrize(
    ("kind", "sweep"),
    [(LinearProbe, name) for name in SWEEPS]
    + [(partial(NMTune, recipe=recipe, hidden=9), name) for recipe in RECIPES for name in (*SWEEPS, *TUNED)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_fit_heads_equals_fitting_alone(kind, sweep, masked):
    X, y = blobs(131, dtype=np.float64)
    given = [kind(**{"epochs": 4, "dtype": "float64", **one}) for one in (SWEEPS | TUNED)[sweep]]
    masks = [None if i == 1 else np.random.default_rng(i // 3).random(131) < 0.6 for i in range(len(given))]
    fitted = fit_heads(X, y, given, sample_masks=masks if masked else None)
    for together, alone, mask in zip(fitted, given, masks, strict=True):
        rows = mask if masked and mask is not None else slice(None)
        expected = clone(alone).fit(X[rows], y[rows])
        np.testing.assert_allclose(together.predict_proba(X), expected.predict_proba(X), rtol=1e-5)
        np.testing.assert_allclose(together.loss_curve_, expected.loss_curve_, rtol=1e-5)
        assert together.get_params() == alone.get_params()
        assert together.n_features_in_ == 12
        assert not hasattr(alone, "module_")


GRID = [
    {"random_state": seed, "weight_decay": decay, "learning_rate": rate}
    for seed, decay, rate in product(range(4), (0.0, 1e-4, 1e-2, 0.1), (1e-3, 3e-3, 1e-2, 3e-2))
]


@pytest.mark.parametrize(
    "kind", [LinearProbe, partial(MLPTune, hidden=5), *(partial(NMTune, recipe=one, hidden=5) for one in RECIPES)]
)
def test_64_heads_of_100_classes_equal_fitting_alone(kind):
    X, y = blobs(200, 6, 100, dtype=np.float64)
    given = [kind(**one, epochs=2, dtype="float64") for one in GRID]
    assert len(given) == 64
    for together, alone in list(zip(fit_heads(X, y, given), given, strict=True))[::21]:
        expected = clone(alone).fit(X, y)
        np.testing.assert_allclose(together.predict_proba(X), expected.predict_proba(X), rtol=1e-5)
        np.testing.assert_allclose(together.loss_curve_, expected.loss_curve_, rtol=1e-5)


FLOAT32_TOLERANCE = 2e-3  # as `fit_heads` says; the largest seen is 4e-4, of the reference recipe
FLOAT32_SWEEPS = {
    LinearProbe: [{"learning_rate": rate} for rate in (1e-2, 3e-3)],
    MLPTune: [{"recipe": recipe, "weight_decay": decay} for recipe in RECIPES for decay in (0.0, 1e-2)],
    NMTune: [{"recipe": recipe, "weights": weights} for recipe in RECIPES for weights in (None, 0.1, 1.0)],
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", HEADS)
def test_fit_heads_in_float32_agrees_within_the_stated_rounding(kind, seed):
    """On overlapping classes of which a third of the labels is wrong: where all is certain, nothing shows."""
    X, y = blobs(300, seed=seed)
    noise = np.random.default_rng(seed)
    X, y = X + noise.standard_normal(X.shape, dtype=np.float32), np.where(noise.random(300) < 0.3, 0, y)
    given = [kind(**one, random_state=seed, epochs=30) for one in FLOAT32_SWEEPS[kind]]
    for together, alone in zip(fit_heads(X, y, given), given, strict=True):
        expected = clone(alone).fit(X, y).predict_proba(X)
        np.testing.assert_allclose(together.predict_proba(X), expected, rtol=0, atol=FLOAT32_TOLERANCE)
    assert fit_heads(X, y, []) == []


def test_fit_heads_takes_heads_of_any_kind_and_more_than_fit_into_a_cache(monkeypatch):
    X, y = blobs()
    given = [
        LinearProbe(epochs=5),
        *(kind(epochs=2) for kind in (NMTune, MLPTune, MLPTune)),
        MLPTune(epochs=2, hidden=5),
    ]
    expected = fit_heads(X, y, given)
    monkeypatch.setattr("nml_kit.heads.training._BYTES_TOGETHER", 1)
    for one_by_one, together in zip(fit_heads(X, y, given), expected, strict=True):
        np.testing.assert_allclose(one_by_one.predict_proba(X), together.predict_proba(X), atol=1e-4)


def test_a_class_outside_the_mask_is_unknown_to_the_head():
    X, y = blobs()
    first, second = fit_heads(X, y, [LinearProbe(epochs=1), LinearProbe(epochs=1)], sample_masks=[y != 1, None])
    assert first.classes_.tolist() == [0, 2]
    assert second.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([None], "Expected one sample mask per head, got 1 for 2 heads"),
        ([np.ones(3, bool)] * 2, r"Expected sample masks of bool \(200,\).*got bool of shape \(3,\)"),
        ([np.arange(200)] * 2, r"got int64 of shape \(200,\)"),
        ([np.zeros(200, bool)] * 2, "at least two classes in y, got no class"),
    ],
)
def test_bad_masks_are_named(masks, message):
    X, y = blobs()
    with pytest.raises(InvalidInputError, match=message):
        fit_heads(X, y, [LinearProbe(), MLPTune()], sample_masks=masks)


def test_fit_heads_names_a_classifier_that_it_cannot_train():
    with pytest.raises(InvalidInputError, match=r"Expected LinearProbe.*got ExactLinearProbe\(\); call its own `fit`"):
        fit_heads(*blobs(), [LinearProbe(), ExactLinearProbe()])


@pytest.mark.parametrize("head", [MLPTune, NMTune])
def test_tuned_features_are_a_table_if_asked(head):
    X, y = blobs()
    fitted = head(epochs=1).fit(X, y)
    Z = fitted.transform(X)
    table = fitted.set_output(transform="pandas").transform(X)
    assert list(table.columns) == [f"{head.__name__.lower()}{feature}" for feature in range(12)]
    np.testing.assert_array_equal(table.to_numpy(), Z)


def test_progress_bar_only_when_asked(capsys):
    X, y = blobs()
    LinearProbe(epochs=2).fit(X, y)
    assert capsys.readouterr().err == ""
    LinearProbe(epochs=2, verbose=True).fit(X, y)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("head", HEADS)
class TestBadInput:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite_features(self, head, bad):
        X, y = blobs()
        X[17, 3] = bad
        with pytest.raises(InvalidInputError, match="Expected finite features, got NaN or inf in row 17"):
            head().fit(X, y)
        fitted = head(epochs=1).fit(*blobs())
        with pytest.raises(InvalidInputError, match="got NaN or inf in row 2"):
            fitted.predict(X[15:])

    def test_lengths_differ(self, head):
        X, y = blobs()
        with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[200, 199\]"):
            head().fit(X, y[1:])

    def test_one_class(self, head):
        X, _ = blobs()
        with pytest.raises(
            InvalidInputError, match=r"at least two classes in y, got one class: .*'cat'.* \(200 samples\)"
        ):
            head().fit(X, ["cat"] * 200)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"epochs": 0}, "epochs of None or at least 1, got 0"),
            ({"batch_size": 1}, r"batch_size of at least 2 \(one has no variance\), got 1"),
            ({"learning_rate": 0.0}, "a positive learning_rate, got 0.0"),
            ({"learning_rate": float("nan")}, "a positive learning_rate, got nan"),
            ({"weight_decay": -1e-4}, "weight_decay of at least 0, got -0.0001"),
            ({"dtype": "float23"}, "Unknown dtype 'float23': did you mean 'float32'"),
        ],
    )
    def test_settings(self, head, settings, message):
        with pytest.raises(InvalidInputError, match=message):
            head(**settings).fit(*blobs())

    def test_diverging_training(self, head):
        X, y = blobs()
        with pytest.raises(InvalidInputError, match="diverged"):
            head(learning_rate=1e30).fit(X * 1e18, y)


@pytest.mark.parametrize("head", [MLPTune, NMTune])
def test_unknown_recipe_and_bad_width(head):
    with pytest.raises(UnknownNameError, match="Unknown recipe 'referense': did you mean 'reference'"):
        head(recipe="referense").fit(*blobs())
    with pytest.raises(InvalidInputError, match="hidden of at least 1, got 0"):
        head(hidden=0).fit(*blobs())


@pytest.mark.parametrize("weights", [-0.1, (1.0, 2.0), (1, 1, np.nan), [[1, 1, 1]]])
def test_bad_weights(weights):
    with pytest.raises(InvalidInputError, match=r"weights of None, one number >= 0 or three \(mse, cov, svd\)"):
        NMTune(weights=weights).fit(*blobs())
