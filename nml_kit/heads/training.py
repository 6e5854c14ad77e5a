"""From arrays to trained heads: those of one shape side by side, as one stack, on features as they lie, by index."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from nml_kit.errors import InvalidInputError
from nml_kit.heads.inputs import Mask, on_host, require_finite, training_rows, validated_features
from nml_kit.heads.networks import HeadNetwork, build_network, stack_networks, unstack_networks
from nml_kit.heads.terms import Recipe, stacked_terms

_DEFAULT_EPOCHS = 30  # the authors' commands
# A step of AdamW moves a weight by at most about the learning rate, so a head that takes few steps stays at
# its random start: with 30 epochs on 150 samples (90 steps) a linear probe of iris has 6 to 60 % accuracy,
# with 500 steps 85 to 95.
_LEAST_STEPS = 500
# Weights, gradients and AdamW's two moments of the heads of a stack should stay in a last-level cache: side by side,
# heads too large for it evict each other and are slower than one after the other.
_BYTES_TOGETHER = 16 * 2**20


@dataclass(frozen=True, eq=False)
class Trainee:
    """A head to train, by the settings of the estimator `head`, on the rows (n,) of features X (N, D).

    X has any float dtype and lies on any device. `codes` (n,) int64 are the labels of these rows in 0 … K−1; rows and
    codes lie where X does. The order of the samples in each epoch is drawn from `order_seed`.
    """

    head: Any
    network: HeadNetwork
    X: Float[Tensor, "n_all d"]
    rows: Int[Tensor, " n"]
    codes: Int[Tensor, " n"]
    order_seed: int

    @property
    def bounds(self) -> list[tuple[int, int]]:
        return batch_bounds(len(self.rows), self.head.batch_size)

    @property
    def epochs(self) -> int:
        epochs: int = self.head.epochs or max(_DEFAULT_EPOCHS, math.ceil(_LEAST_STEPS / len(self.bounds)))
        return epochs

    @property
    def kind(self) -> Hashable:
        """What heads must have in common to be one stack."""
        like, head = self.network.classifier.weight, self.head
        shapes = tuple((name, tuple(value.shape)) for name, value in self.network.named_parameters())
        size = len(self.rows), head.batch_size, self.epochs
        return shapes, like.dtype, like.device, head._tuner_recipe(), any(head._term_weights()), size

    @property
    def batches_key(self) -> Hashable:
        """What heads that see the same batches have in common."""
        return id(self.X), id(self.rows), id(self.codes), self.order_seed


def fit_together(heads: Sequence[Any], X: Any, y: ArrayLike, masks: Sequence[Mask]) -> None:
    """Fit heads in place, each on the rows of its mask (None: all)."""
    y = on_host(y)
    checked: dict[str, tuple[Tensor, NDArray[Any], dict[str, Any]]] = {}
    subsets: dict[tuple[str, bytes], tuple[NDArray[Any], Tensor, Tensor]] = {}
    trainees = []
    for head, mask in zip(heads, masks, strict=True):
        head._check_settings()
        dtype = head.dtype
        checked[dtype] = checked.get(dtype) or _checked(head, X, y)
        features, labels, seen = checked[dtype]
        key = dtype, b"" if mask is None else np.asarray(mask).tobytes()
        subsets[key] = subsets.get(key) or training_rows(labels, mask, features.device)
        head.classes_, rows, codes = subsets[key]
        for name, value in seen.items():
            setattr(head, name, value)
        # Two streams, so that heads of different shapes with one seed see the batches in one order.
        seeds = check_random_state(head.random_state).randint(np.iinfo(np.int32).max, size=2)
        generator, widths = torch.Generator().manual_seed(int(seeds[0])), head._hidden_widths(features.shape[1])
        network = build_network(features.shape[1], len(head.classes_), head._tuner_recipe(), widths, generator)
        network.to(head.device, getattr(torch, dtype))
        trainees.append(Trainee(head, network, features, rows, codes, int(seeds[1])))
    for head, trainee, curve in zip(heads, trainees, train(trainees), strict=True):
        head.loss_curve_, head.module_ = curve, trainee.network.eval().cpu()


def _checked(head: Any, X: Any, y: Any) -> tuple[Tensor, NDArray[Any], dict[str, Any]]:
    """Check X and y for the heads of one dtype; return both, and what scikit-learn keeps of the features' form."""
    features, labels = validated_features(head, X, y)
    require_finite(features, head.dtype, source=X)
    check_classification_targets(labels)
    names = ("n_features_in_", "feature_names_in_")
    return features, labels, {name: getattr(head, name) for name in names if hasattr(head, name)}


def train(trainees: Sequence[Trainee]) -> list[list[float]]:
    """Train networks in place with AdamW and a cosine to 0 per step; return the mean losses of each one's epochs.

    Each has the result that it would have alone but for rounding. Raises InvalidInputError if one diverges.
    """
    curves: list[list[float]] = [[] for _ in trainees]
    for positions in _stacks(trainees):
        for position, curve in zip(positions, _train_stack([trainees[p] for p in positions]), strict=True):
            curves[position] = curve
    return curves


def batch_bounds(num_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Return start and stop of each batch; a last batch of one joins the one before.

    One sample has no variance: BatchNorm fails on it and its covariance is undefined. Joining, unlike dropping, keeps
    every sample in every epoch.

    >>> batch_bounds(7, 3)
    [(0, 3), (3, 7)]
    """
    starts = list(range(0, num_samples, batch_size))
    if len(starts) > 1 and num_samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_samples], strict=True))


def cosine_schedule(optimizer: torch.optim.Optimizer, num_steps: int) -> LambdaLR:
    """Bring the learning rates to 0 over so many steps along half a cosine."""
    return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / num_steps)) / 2)


def _stacks(trainees: Sequence[Trainee]) -> Iterator[list[int]]:
    """Yield the positions of the heads of each stack."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, trainee in enumerate(trainees):
        groups[trainee.kind].append(position)
    for group in groups.values():
        parameters = trainees[group[0]].network.parameters()
        size = max(1, _BYTES_TOGETHER // (4 * sum(values.numel() * values.element_size() for values in parameters)))
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _train_stack(trainees: Sequence[Trainee]) -> list[list[float]]:
    heads, recipe = [trainee.head for trainee in trainees], trainees[0].head._tuner_recipe()
    num_samples, bounds, epochs = len(trainees[0].rows), trainees[0].bounds, trainees[0].epochs
    stack = stack_networks([trainee.network for trainee in trainees])
    like = stack.classifier.weight
    term_weights = like.new_tensor([head._term_weights() for head in heads]).T
    gradients = [torch.zeros_like(parameter) for parameter in stack.parameters()]
    for parameter, gradient in zip(stack.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer = _optimizer(stack, [(head.learning_rate, head.weight_decay) for head in heads])
    schedule = cosine_schedule(optimizer, epochs * len(bounds))
    batches = _batches(trainees, bounds)
    curves = []
    for epoch in tqdm(range(epochs), disable=not any(head.verbose for head in heads), unit="epoch"):
        total = like.new_zeros(len(trainees))
        for _ in bounds:
            F, codes = next(batches)
            loss = _losses(stack, F.to(like), codes.to(like.device), recipe, term_weights)
            for gradient in gradients:
                gradient.zero_()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * codes.shape[1]
        curves.append((total / num_samples).tolist())
        _require_finite(curves[-1], heads, epoch, epochs)
    unstack_networks(stack, [trainee.network for trainee in trainees])
    return [list(curve) for curve in zip(*curves, strict=True)]


def _losses(stack: HeadNetwork, F: Tensor, codes: Tensor, recipe: Recipe | None, term_weights: Tensor) -> Tensor:
    """The loss (H,) of each head on a batch F (H or 1, M, D), codes (H or 1, M); term_weights are (3, H)."""
    Z, logits = stack(F)
    codes = codes.expand(logits.shape[:2])
    loss = functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes).mean(dim=1)
    if recipe and term_weights.any():
        loss = loss + (term_weights * stacked_terms(Z, F, recipe)).sum(dim=0)
    return loss


def _optimizer(stack: HeadNetwork, rates: Sequence[tuple[float, float]]) -> torch.optim.Optimizer:
    """AdamW with the (learning rate, weight decay) of each head.

    Heads that differ in them are parameter groups of their own, each a slice of the stack and of its gradients.
    """
    slices = [slice(head, head + 1) for head in range(len(rates))] if len(set(rates)) > 1 else [slice(None)]
    groups = [
        {"params": [_view(parameter, part) for parameter in stack.parameters()], "lr": rate, "weight_decay": decay}
        for part, (rate, decay) in zip(slices, rates, strict=False)
    ]
    return torch.optim.AdamW(groups, fused=True)  # several times faster than the default, on a CPU too


def _view(parameter: Tensor, part: slice) -> nn.Parameter:
    """Some heads of a stacked parameter, in the same memory, with their gradient."""
    view = nn.Parameter(parameter.detach()[part])
    view.grad = None if parameter.grad is None else parameter.grad[part]
    return view


def _batches(trainees: Sequence[Trainee], bounds: list[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield F (H, M, D) and codes (H, M) for ever, in a new order each epoch; H = 1 where all heads see the same."""
    sources = trainees[:1] if len({trainee.batches_key for trainee in trainees}) == 1 else trainees
    generators = [torch.Generator().manual_seed(source.order_seed) for source in sources]
    while True:
        orders = [
            torch.randperm(len(source.rows), generator=generator).to(source.rows.device)
            for source, generator in zip(sources, generators, strict=True)
        ]
        for start, stop in bounds:
            chosen = [order[start:stop] for order in orders]
            features = [source.X[source.rows[places]] for source, places in zip(sources, chosen, strict=True)]
            codes = [source.codes[places] for source, places in zip(sources, chosen, strict=True)]
            yield torch.stack(features), torch.stack(codes)


def _require_finite(losses: Sequence[float], heads: Sequence[Any], epoch: int, epochs: int) -> None:
    for loss, head in zip(losses, heads, strict=True):
        if not math.isfinite(loss):
            raise InvalidInputError(
                f"Expected a finite loss, got {loss} in epoch {epoch + 1} of {epochs}: training diverged. Lower "
                f"learning_rate (now {head.learning_rate:g}) or scale the features."
            )
