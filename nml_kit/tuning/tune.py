"""Tuning the backbone itself, all of it or by low-rank adapters (LoRA), with NMTune's terms or without.

Beyond the black box: this needs the weights, not features alone. Z are the features of the network being tuned, F
those of the pre-trained one for the same samples, N samples, D features, K classes.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from tqdm import tqdm

from nml_kit.backbones import Backbone, SentenceEncoder, fingerprint_weights, image_network
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.features import BATCH_ROWS, Features, Fold, extract_features, in_domain_fold, samples_to_train
from nml_kit.heads import CosineAdamW, LinearProbe, batch_bounds, nmtune_terms, require, term_weights
from nml_kit.store import Store
from nml_kit.tuning.lora import add_adapters

# By random state; no longer than their samples are in use, which may fill the memory.
_STARTS: WeakKeyDictionary[Features, dict[int, LinearProbe]] = WeakKeyDictionary()


@dataclass(kw_only=True, eq=False, repr=False)
class Tuning(BaseEstimator):
    """How a backbone is tuned. Settings alone, with scikit-learn's `get_params` and `set_params` for grids of them.

    method: "full" trains all weights, "lora" low-rank adapters on the convolutions and linear layers, of the given
    `rank`, and the classifier. weights: of NMTune's terms in the loss, see `NMTune`; 0 is plain tuning. epochs,
    batch_size, learning_rate (at the start, cosine to 0 per step), weight_decay (AdamW's), random_state (an int, of
    start and order), device: as those of `LinearProbe`; a learning rate of 0 is allowed.

    >>> Tuning(method="lora", weights=0.01).set_params(rank=4).rank
    4
    """

    method: Literal["full", "lora"] = "full"
    weights: float | tuple[float, float, float] | None = 0.0
    rank: int = 8
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    random_state: int = 0
    device: str = "cpu"

    def check(self) -> None:
        """Raise InvalidInputError for settings out of range."""
        if self.method not in ("full", "lora"):
            raise unknown_name("method of tuning", str(self.method), ("full", "lora"))
        require(self.rank >= 1, "rank of at least 1", self.rank)
        require(self.epochs >= 1, "epochs of at least 1", self.epochs)
        require(self.batch_size >= 2, "batch_size of at least 2 (one has no covariance)", self.batch_size)
        require(0 <= self.learning_rate < math.inf, "a learning_rate of at least 0", self.learning_rate)
        require(0 <= self.weight_decay < math.inf, "a weight_decay of at least 0", self.weight_decay)
        term_weights(self.weights, "paper")


@dataclass(frozen=True, eq=False)
class TunedModel:
    """A tuned network: `backbone` gives its features Z, `head` is the linear classifier on them.

    `head.loss_curve_` has the mean loss of each epoch, `trained_parameters` counts what was trained.
    """

    backbone: Backbone
    head: LinearProbe
    trained_parameters: int

    def predict_proba(self, inputs: NDArray[Any]) -> NDArray[np.float64]:
        """Class probabilities, float64 (N, K), of uint8 images (N, H, W, 3) or texts (N,)."""
        return self.head.predict_proba(self._encode(inputs))

    def predict(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """The most probable label (N,) of uint8 images (N, H, W, 3) or texts (N,)."""
        return self.head.predict(self._encode(inputs))

    def _encode(self, inputs: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate([self.backbone(part).numpy() for part in _parts(inputs)])


def with_features_of(backbone: Backbone, task: Task, samples: Features) -> Features:
    """The `samples` of `task` with the features that `backbone` gives them now, in place of those they have.

    Raises InvalidInputError for samples of another task.
    """
    batches = [backbone(task.inputs(rows)).numpy() for rows in _parts(_rows_of(task, samples))]
    return replace(samples, values=np.concatenate(batches), fingerprint=backbone.fingerprint)


def fine_tune(
    task: Task,
    backbone: Backbone,
    tuning: Tuning | None = None,
    *,
    fold: Fold | None = None,
    store: Store | None = None,
    progress: bool = True,
) -> TunedModel:
    """Tune a copy of the backbone's network, and a linear classifier on it, on the train samples of a task.

    L = L_CE + w₁·L_MSE + w₂·L_COV + w₃·L_SVD with the terms of `nmtune_terms(Z, F)` of each batch. F is extracted once
    (the store keeps it): images are not augmented, else F would not be of the same input. The classifier starts as a
    linear probe on F: a random one would pull good features apart (Kumar et al., Fine-Tuning can Distort Pretrained
    Features, ICLR 2022). The network stays in eval mode: Z starts as F, and nothing is drawn but the order; batch
    normalisation keeps its statistics, full tuning trains its gains and shifts.

    `fold` chooses train samples and their labels, None is all of them. The backbone passed in stays as it is; the same
    seed, machine and number of threads give the same bytes. Raises InvalidInputError for a backbone that is not a torch
    module, settings out of range or a training that diverges, and MissingDependencyError for LoRA without peft.

    >>> from nml_kit import load_backbone, load_task
    >>> digits = load_task("digits").limit(classes=3, train_per_class=8, seed=0)
    >>> tuned = fine_tune(digits, load_backbone("compact-resnet:8"), Tuning(epochs=1), progress=False)
    >>> tuned.predict(digits.images).shape, tuned.backbone.name
    ((138,), 'compact-resnet:8, full tuning')
    """
    tuning = tuning or Tuning()
    _network_of(backbone)  # before features are extracted for nothing
    tuning.check()
    features = extract_features(task, backbone, store=store, progress=progress)
    train = samples_to_train(features, fold or in_domain_fold(task.name))
    return tune_on(task, backbone, train, tuning, progress=progress)


def tune_on(task: Task, backbone: Backbone, train: Features, tuning: Tuning, *, progress: bool = False) -> TunedModel:
    """`fine_tune` on samples of `task` with their frozen features and labels, where these are known.

    Raises InvalidInputError for samples of another task, and what `fine_tune` raises.
    """
    tuning.check()
    rows = _rows_of(task, train)
    encoder = copy.deepcopy(_network_of(backbone)).to(tuning.device)
    head = copy.deepcopy(_start(train, tuning.random_state))
    classifier = head.module_.classifier.to(tuning.device)
    network = image_network(encoder).eval().requires_grad_(True)
    adapted = add_adapters(network, tuning.rank, tuning.random_state) if tuning.method == "lora" else None
    network.eval()  # adapters come in training mode
    weights = [weight for part in (network, classifier) for weight in part.parameters() if weight.requires_grad]
    encode = _trainable(encoder, backbone)
    head.loss_curve_ = _train(lambda batch: encode(task.inputs(rows[batch])), head, weights, train, tuning, progress)
    if adapted is not None:
        adapted.merge_and_unload()
    tuned = encoder.requires_grad_(False).eval().cpu()
    classifier.cpu()
    count = sum(weight.numel() for weight in weights if weight.grad is not None)
    name, weights_digest = f"{backbone.name}, {tuning.method} tuning", fingerprint_weights(tuned)
    backbone = replace(backbone, name=name, encode=tuned, fingerprint=weights_digest, card=None)
    return TunedModel(backbone, head, count)


def _start(train: Features, random_state: int) -> LinearProbe:
    """The linear probe that tuning starts from, for all settings that are compared on the same samples."""
    starts = _STARTS.setdefault(train, {})
    if random_state not in starts:
        starts[random_state] = LinearProbe(random_state=random_state).fit(train.values, train.labels)
    return starts[random_state]


def _train(
    encode: Callable[[NDArray[Any]], Tensor],
    head: LinearProbe,
    weights: list[nn.Parameter],
    train: Features,
    tuning: Tuning,
    progress: bool,
) -> list[float]:
    """Train the weights in place; return the mean loss of each epoch. `encode` gives Z of rows (M,) of `train`."""
    count, device = len(train), tuning.device
    codes = torch.from_numpy(np.searchsorted(head.classes_, train.labels))
    generator, bounds = torch.Generator().manual_seed(tuning.random_state), batch_bounds(count, tuning.batch_size)
    optimizer = CosineAdamW([(weights, tuning.learning_rate, tuning.weight_decay)], tuning.epochs * len(bounds))
    loss_weights, curve = term_weights(tuning.weights, "paper"), []
    for epoch in tqdm(range(tuning.epochs), "tuning", disable=not progress, unit="epoch", leave=False):
        order, total = torch.randperm(count, generator=generator), 0.0
        for start, stop in bounds:
            batch = order[start:stop].numpy()
            F = torch.from_numpy(np.array(train.values[batch], dtype=np.float32)).to(device)
            Z = encode(batch)
            loss = tuning_loss(Z, F, codes[batch].to(device), head.module_.classifier, loss_weights)
            for weight in weights:
                weight.grad = None
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        curve.append(total / count)
        if not math.isfinite(curve[-1]):
            raise InvalidInputError(
                f"Expected a finite loss, got {curve[-1]} in epoch {epoch + 1} of {tuning.epochs}: tuning diverged. "
                f"Lower learning_rate (now {tuning.learning_rate:g})."
            )
    return curve


def tuning_loss(
    Z: Tensor, F: Tensor, codes: Tensor, classifier: nn.Module, weights: tuple[float, float, float]
) -> Tensor:
    """Cross-entropy of the classifier on Z (M, D) plus the weighted terms of Z against F (M, D); codes are (M,)."""
    loss = nn.functional.cross_entropy(classifier(Z), codes)
    if any(weights):
        loss = loss + sum(weight * term for weight, term in zip(weights, nmtune_terms(Z, F), strict=True))
    return loss


def _trainable(encoder: nn.Module, backbone: Backbone) -> Callable[[NDArray[Any]], Tensor]:
    """The network from raw inputs to features with gradients, as `Backbone` calls it without."""
    if isinstance(encoder, SentenceEncoder):
        return encoder.embed
    if backbone.transform is None:
        return encoder
    transform, device = backbone.transform, next(encoder.parameters()).device
    return lambda images: encoder(transform.prepare(images, device))


def _network_of(backbone: Backbone) -> nn.Module:
    encode = backbone.encode
    if isinstance(encode, nn.Module) and next(encode.parameters(), None) is not None:
        return encode
    raise InvalidInputError(
        f"Backbone {backbone.name!r}: expected a torch module with weights to tune, got a black box "
        f"({type(encode).__name__}); tune a head on its features instead (NMTune)."
    )


def _rows_of(task: Task, samples: Features) -> NDArray[np.intp]:
    """The position in `task` of each sample, by its id; InvalidInputError for an id that the task has not."""
    order = np.argsort(task.ids)
    rows = order.take(np.searchsorted(task.ids, samples.ids, sorter=order), mode="clip")
    if (strange := task.ids[rows] != samples.ids).any():
        raise InvalidInputError(
            f"Expected samples of task {task.name!r}, got features of {samples.task!r} with the id "
            f"{str(samples.ids[strange][0])!r}, which it has not; extract them from this task."
        )
    return rows


def _parts(values: NDArray[Any]) -> list[NDArray[Any]]:
    return [values[start : start + BATCH_ROWS] for start in range(0, len(values), BATCH_ROWS)]
