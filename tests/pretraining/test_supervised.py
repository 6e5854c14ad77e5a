import json
import math

import numpy as np
import pytest
import torch

from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.noise import inject_label_noise
from nml_kit.pretraining import Recipe, draw_shifts, launched_processes, pretrain, shift_images
from nml_kit.pretraining.loop import set_learning_rate
from nml_kit.pretraining.recipes import CONTRASTIVE_RECIPES, RECIPES, resolve_recipe
from nml_kit.pretraining.supervised import SupervisedTraining
from nml_kit.store import Store
from tests.conftest import make_task

QUICK = Recipe(architecture="compact-resnet:8", epochs=2, batch_size=16, learning_rate=0.05)


def noise_for(task, ratio, seed=0):
    train = task.select(split="train")
    return inject_label_noise(train.labels, ratio, num_classes=task.num_classes, seed=seed, ids=train.ids)


def run(task, store, *, ratio=0.0, recipe=QUICK, seed=0):
    return pretrain(task, noise_for(task, ratio), recipe=recipe, seed=seed, store=store, progress=False)


def weights_bytes(store):
    (info,) = store.entries("backbone")
    return (info.path / "weights.safetensors").read_bytes()


def test_learns_what_can_be_learned(task, store):
    card = run(task, store, recipe=QUICK.model_copy(update={"epochs": 8})).card
    assert card["history"][-1]["test_accuracy"] >= 0.9
    assert card["history"][-1]["loss"] < card["history"][0]["loss"]


def test_memorised_share_is_high_only_where_flips_can_be_memorised(tmp_path):
    few = make_task(per_class=8)
    shared = {"architecture": "compact-resnet:16", "batch_size": 12, "learning_rate": 0.05}
    light = run(few, Store(tmp_path / "a"), ratio=0.25, recipe=Recipe(epochs=1, **shared))
    long = run(few, Store(tmp_path / "b"), ratio=0.25, recipe=Recipe(epochs=40, max_shift=0, **shared))
    assert long.card["history"][-1]["memorised"] > 0.8 > light.card["history"][-1]["memorised"]


def test_same_request_gives_the_same_bytes_and_is_trained_once(task, tmp_path):
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    first = run(task, one, ratio=0.1)
    second = run(task, two, ratio=0.1)
    assert weights_bytes(one) == weights_bytes(two)
    assert first.card == second.card
    (info,) = one.entries("backbone")
    written = (info.path / "weights.safetensors").stat().st_mtime_ns
    run(task, one, ratio=0.1)
    assert (info.path / "weights.safetensors").stat().st_mtime_ns == written


def test_dropout_is_drawn_from_the_seed_alone(task, tmp_path):
    recipe = Recipe(architecture="torchvision:mobilenet_v3_small", epochs=1, batch_size=16)
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        before = torch.get_rng_state()
        run(task, Store(tmp_path / name), recipe=recipe)
        assert torch.equal(torch.get_rng_state(), before)
    assert weights_bytes(Store(tmp_path / "a")) == weights_bytes(Store(tmp_path / "b"))


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path):
    task, before = make_task(per_class=40), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            run(task, Store(tmp_path / str(threads)), ratio=0.1)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert weights_bytes(Store(tmp_path / "1")) == weights_bytes(Store(tmp_path / "2"))


def test_global_random_state_is_left_alone(task, store):
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    run(task, store, recipe=QUICK)
    assert torch.equal(torch.get_rng_state(), before_torch)
    np.testing.assert_array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002


@pytest.mark.parametrize(
    "change",
    [{"ratio": 0.1}, {"seed": 1}, {"recipe": QUICK.model_copy(update={"epochs": 3})}],
    ids=["noise", "seed", "recipe"],
)
def test_another_request_is_another_entry(task, store, change):
    run(task, store)
    run(task, store, **change)
    assert len({info.digest for info in store.entries("backbone")}) == 2


def test_card_is_readable_and_names_its_noise(task, store):
    run(task, store, ratio=0.1)
    (info,) = store.entries("backbone")
    card = json.loads((info.path / "manifest.json").read_text(encoding="utf-8"))["card"]
    assert card["noise"]["requested_ratio"] == 0.1
    assert card["noise"]["realised_ratio"] == pytest.approx(round(0.1 * 72) / 72)
    assert [row["epoch"] for row in card["history"]] == [1, 2]


def test_noise_of_other_labels_is_refused(task, store):
    other = inject_label_noise(np.zeros(5, dtype=int), 0.0, num_classes=2, seed=0)
    with pytest.raises(InvalidInputError, match=r"made from its 72 train labels.*record of 5 other labels"):
        pretrain(task, other, seed=0, store=store)


def test_a_seed_of_numpy_is_that_integer(task, store):
    first, again = run(task, store, seed=3), run(task, store, seed=np.int64(3))
    assert (again.name, again.card["seed"]) == (first.name, 3)
    weights_bytes(store)  # one entry
    for seed in (-1, 0.5, True):
        with pytest.raises(InvalidInputError, match=f"Expected seed to be an integer of at least 0, got {seed}"):
            run(task, store, seed=seed)


@pytest.mark.parametrize("contrastive", [False, True], ids=["labels", "captions"])
def test_unknown_recipe_names_the_nearest(contrastive):
    with pytest.raises(UnknownNameError, match="Unknown pre-training recipe 'lite': did you mean 'light'"):
        resolve_recipe("lite", contrastive=contrastive)
    known = CONTRASTIVE_RECIPES if contrastive else RECIPES
    assert resolve_recipe("memorise", contrastive=contrastive) == known["memorise"]


def test_learning_rate_warms_up_then_follows_a_cosine():
    recipe = Recipe(epochs=11, warmup_epochs=1, learning_rate=2.0)
    optimizer = torch.optim.SGD([torch.zeros(1)])
    expected = {0.0: 0.2, 1.0: 2.0, 6.0: 1.0, 11.0: 0.0, 3.5: 1 + math.cos(math.pi / 4)}
    for epoch, rate in expected.items():
        set_learning_rate(optimizer, epoch, recipe)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-12)


def test_shifts_move_whole_images_and_repeat_the_edge():
    images = torch.arange(6 * 6).view(1, 6, 6, 1).repeat(200, 1, 1, 1)
    shifted = shift_images(images, draw_shifts(200, 2, np.random.default_rng(0)))
    seen = set()
    for image in shifted[..., 0].numpy():
        down, right = divmod(int(image[3, 3]) - (3 * 6 + 3) + 2 * 6 + 2, 6)
        rows = np.clip(np.arange(6) + down - 2, 0, 5)
        columns = np.clip(np.arange(6) + right - 2, 0, 5)
        np.testing.assert_array_equal(image, images[0, :, :, 0].numpy()[np.ix_(rows, columns)])
        seen.add((down, right))
    assert len(seen) == 25


def test_without_batch_norm_passes_add_up_to_the_undivided_batch(task):
    def weights_and_loss(accumulate):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(3072, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
        )
        recipe = Recipe(epochs=1, batch_size=17, learning_rate=0.01, accumulate=accumulate)  # the last batch has 4
        training = SupervisedTraining(task, noise_for(task, 0.0), recipe, 0, launched_processes())
        training.use(network)
        loss = training.train_epoch(network, 0)["loss"]
        return torch.cat([values.flatten() for values in network.state_dict().values()]), loss

    (whole, loss), (divided, divided_loss) = weights_and_loss(1), weights_and_loss(5)
    torch.testing.assert_close(divided, whole, atol=1e-5, rtol=0)
    assert divided_loss == pytest.approx(loss, abs=1e-5)


def test_passes_of_one_sample_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 samples a pass.*batch_size=8 in accumulate=5 passes; lower"):
        Recipe(batch_size=8, accumulate=5)
