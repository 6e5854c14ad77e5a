"""From arrays to trained heads: those of one shape side by side, as one stack, on features as they lie, by index."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from nml_kit.errors import InvalidInputError
from nml_kit.heads.inputs import Mask, on_host, require_finite, training_rows, validated_features
from nml_kit.heads.networks import Design, HeadNetwork, build_network, stack_networks, unstack_networks
from nml_kit.heads.optimizer import CosineAdamW
from nml_kit.heads.terms import stacked_terms

_DEFAULT_EPOCHS = 30  # the authors' commands
# A step of AdamW moves a weight by at most about the learning rate, so a head that takes few steps stays at
# its random start: with 30 epochs on 150 samples (90 steps) a linear probe of iris has 6 to 60 % accuracy,
# with 500 steps 85 to 95.
_LEAST_STEPS = 500
# Weights, gradients and AdamW's two moments of the heads of a stack should stay in a last-level cache: side by side,
# heads too large for it evict each other and are slower than one after the other.
_BYTES_TOGETHER = 16 * 2**20


@dataclass(frozen=True, eq=False)
class _Trainee:
    """A head, its network, and its training set: rows (n,) of features X (N, D), with labels as codes 0 … K−1 (n,)."""

    head: Any
    design: Design
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
        return shapes, like.dtype, like.device, self.design.recipe, any(self.design.weights), size


def fit_together(heads: Sequence[Any], X: Any, y: ArrayLike, masks: Sequence[Mask]) -> None:
    """Fit heads in place, each on the rows of its mask (None: all): with AdamW and a cosine to 0 per step.

    Each is as it would be alone but for rounding. Raises InvalidInputError if one diverges.
    """
    groups: defaultdict[Hashable, list[_Trainee]] = defaultdict(list)
    for trainee in _trainees(heads, X, y, masks):
        groups[trainee.kind].append(trainee)
    for group in groups.values():
        parameters = group[0].network.parameters()
        size = max(1, _BYTES_TOGETHER // (4 * sum(values.numel() * values.element_size() for values in parameters)))
        for start in range(0, len(group), size):
            _train_stack(group[start : start + size])


def _trainees(heads: Sequence[Any], X: Any, y: ArrayLike, masks: Sequence[Mask]) -> Iterator[_Trainee]:
    checked: dict[str, tuple[Tensor, NDArray[Any], dict[str, Any]]] = {}
    subsets: dict[tuple[str, bytes], tuple[NDArray[Any], Tensor, Tensor]] = {}
    for head, mask in zip(heads, masks, strict=True):
        head._check_settings()
        if head.dtype not in checked:
            checked[head.dtype] = _checked(head, X, on_host(y))
        features, labels, form = checked[head.dtype]
        subset = head.dtype, b"" if mask is None else np.asarray(mask).tobytes()
        if subset not in subsets:
            subsets[subset] = training_rows(labels, mask, features.device)
        head.classes_, rows, codes = subsets[subset]
        vars(head).update(form)
        # Two streams, so that heads of different shapes with one seed see the batches in one order.
        seeds = check_random_state(head.random_state).randint(np.iinfo(np.int32).max, size=2)
        generator, design = torch.Generator().manual_seed(int(seeds[0])), head._design(features.shape[1])
        network = build_network(features.shape[1], len(head.classes_), design, generator)
        network.to(head.device, getattr(torch, head.dtype))
        yield _Trainee(head, design, network, features, rows, codes, int(seeds[1]))


def _checked(head: Any, X: Any, y: Any) -> tuple[Tensor, NDArray[Any], dict[str, Any]]:
    """Check X and y for the heads of one dtype; return both, and what scikit-learn keeps of the features' form."""
    features, labels = validated_features(head, X, y)
    require_finite(features, head.dtype, source=X)
    check_classification_targets(labels)
    names = ("n_features_in_", "feature_names_in_")
    return features, labels, {name: getattr(head, name) for name in names if hasattr(head, name)}


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


def _train_stack(trainees: Sequence[_Trainee]) -> None:
    heads, networks = [trainee.head for trainee in trainees], [trainee.network for trainee in trainees]
    bounds, epochs = trainees[0].bounds, trainees[0].epochs
    stack = stack_networks(networks)
    like = stack.classifier.weight
    sizes = like.new_tensor([stop - start for start, stop in bounds])
    one_each = like.new_ones(len(heads))
    groups = _groups(stack, [(head.learning_rate, head.weight_decay) for head in heads])
    optimizer = CosineAdamW(groups, epochs * len(bounds))
    loss_of, batches, curves = _loss(stack, trainees), _batches(trainees, like), []
    for epoch in tqdm(range(epochs), disable=not any(head.verbose for head in heads), unit="epoch"):
        losses = []
        for F, codes in islice(batches, len(bounds)):
            # Gradients that are slices of a stack's stay where they are.
            stack.zero_grad(set_to_none=len(groups) == 1)
            loss = loss_of(F, codes)
            loss.backward(one_each)
            optimizer.step()
            losses.append(loss.detach())
        curves.append((sizes @ torch.stack(losses) / sizes.sum()).tolist())
        for head, mean in zip(heads, curves[-1], strict=True):
            if not math.isfinite(mean):
                raise InvalidInputError(
                    f"Expected a finite loss, got {mean} in epoch {epoch + 1} of {epochs}: training diverged. Lower "
                    f"learning_rate (now {head.learning_rate:g}) or scale the features."
                )
    unstack_networks(stack, networks)
    for head, network, curve in zip(heads, networks, zip(*curves, strict=True), strict=True):
        head.loss_curve_, head.module_ = list(curve), network.eval().cpu()


def _loss(stack: HeadNetwork, trainees: Sequence[_Trainee]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss (H,) of each head as a function of a batch F (H or 1, M, D) and codes (H or 1, M)."""
    recipe = trainees[0].design.recipe
    weights = stack.classifier.weight.new_tensor([trainee.design.weights for trainee in trainees]).T
    regularised = bool(weights.any())

    def loss_of(F: Tensor, codes: Tensor) -> Tensor:
        Z, logits = stack(F)
        codes = codes.expand(logits.shape[:2])
        losses = functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        loss = losses.view_as(codes).mean(dim=1)
        return loss + (weights * stacked_terms(Z, F, recipe)).sum(dim=0) if recipe and regularised else loss

    return loss_of


def _groups(stack: HeadNetwork, rates: Sequence[tuple[float, float]]) -> list[tuple[list[nn.Parameter], float, float]]:
    """Parameters with their learning rate and weight decay: those of the stack, or each head's if they differ.

    A head's are slices of the stack and of its gradients.
    """
    whole = list(stack.parameters())
    if len(set(rates)) == 1:
        return [(whole, *rates[0])]
    for parameter in whole:
        parameter.grad = torch.zeros_like(parameter)
    return [([_slice(parameter, head) for parameter in whole], *own) for head, own in enumerate(rates)]


def _slice(parameter: nn.Parameter, head: int) -> nn.Parameter:
    """One head of a stacked parameter, in the same memory, with its gradient."""
    view = nn.Parameter(parameter.detach()[head])
    view.grad = None if parameter.grad is None else parameter.grad[head]
    return view


def _batches(trainees: Sequence[_Trainee], like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield F (H, M, D) and codes (H, M) for ever, in a new order each epoch; H = 1 where all heads see the same."""
    same = len({(id(trainee.rows), trainee.order_seed) for trainee in trainees}) == 1
    sources, X = trainees[:1] if same else trainees, trainees[0].X
    generators = [torch.Generator().manual_seed(source.order_seed) for source in sources]
    while True:
        drawn: list[tuple[Tensor, Tensor]] = []
        for source, generator in zip(sources, generators, strict=True):
            order = torch.randperm(len(source.rows), generator=generator).to(X.device)
            drawn.append((source.rows[order], source.codes[order]))
        rows, codes = (torch.stack(columns) for columns in zip(*drawn, strict=True))
        codes = codes.to(like.device)
        for start, stop in trainees[0].bounds:
            chosen = rows[:, start:stop]
            yield X.index_select(0, chosen.flatten()).unflatten(0, chosen.shape).to(like), codes[:, start:stop]
