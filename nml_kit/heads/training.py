"""The networks of heads and the loop that trains several of them side by side on features as they lie, by index."""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from tqdm import tqdm

from nml_kit.errors import InvalidInputError
from nml_kit.heads.layers import StackedLinear, StackedTuner
from nml_kit.heads.optimizer import StackOptimizer
from nml_kit.heads.terms import Recipe, TermsOfHeads
from nml_kit.heads.workspace import Workspace

_DEFAULT_EPOCHS = 30  # the authors' commands
# A step of AdamW moves a weight by at most about the learning rate, so a head that takes few steps stays at
# its random start: with 30 epochs on 150 samples (90 steps) a linear probe of iris has 6 to 60 % accuracy,
# with 500 steps 85 to 95.
_LEAST_STEPS = 500
# Weights, gradients and AdamW's two moments of the heads that train together should stay in a last-level cache: side by
# side, heads too large for it evict each other and are slower than one after the other.
_BYTES_TOGETHER = 16 * 2**20


@dataclass(frozen=True)
class TrainingSettings:
    """What the training loop needs to know; `epochs=None` means 30, or more on few samples."""

    recipe: Recipe
    term_weights: tuple[float, float, float]
    epochs: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    verbose: bool

    def epochs_for(self, num_samples: int) -> int:
        return self.epochs or max(_DEFAULT_EPOCHS, math.ceil(_LEAST_STEPS / len(self.bounds_for(num_samples))))

    def bounds_for(self, num_samples: int) -> list[tuple[int, int]]:
        """Start and stop of each batch; a last batch of one joins the one before.

        One sample has no variance: BatchNorm fails on it and its covariance is undefined. Joining, unlike
        dropping, keeps every sample in every epoch.
        """
        starts = list(range(0, num_samples, self.batch_size))
        if len(starts) > 1 and num_samples - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], num_samples], strict=True))


class HeadNetwork(nn.Module):
    """Tuner g (identity for a linear probe) and linear classifier: features F (M, D) → Z (M, D), logits (M, K)."""

    def __init__(self, tuner: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.tuner = tuner
        self.classifier = classifier

    def forward(self, F: Tensor) -> tuple[Tensor, Tensor]:
        Z = self.tuner(F)
        return Z, self.classifier(Z)


class ResidualTuner(nn.Module):
    """The reference tuner z = s ⊙ MLP(f) + f with a learned s (D,), 1 at the start."""

    def __init__(self, mlp: nn.Module, num_features: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.scale = nn.Parameter(torch.ones(num_features))

    def forward(self, F: Tensor) -> Tensor:
        return torch.addcmul(F, self.scale, self.mlp(F))


def build_network(
    num_features: int, num_classes: int, recipe: Recipe | None, hidden: Sequence[int], generator: torch.Generator
) -> HeadNetwork:
    """Build the network of a head on the CPU; `recipe=None` means no tuner (a linear probe), `hidden` its widths."""
    tuner: nn.Module = nn.Identity()
    if recipe is not None:
        layers, inputs = [], num_features
        for width in hidden:
            norm = [nn.BatchNorm1d(width)] if recipe == "reference" else []
            layers += [_hidden_layer(inputs, width, generator), *norm, nn.ReLU()]
            inputs = width
        tuner = nn.Sequential(*layers, _hidden_layer(inputs, num_features, generator))
        if recipe == "reference":
            tuner = ResidualTuner(tuner, num_features)
    classifier = skip_init(nn.Linear, num_features, num_classes)
    nn.init.kaiming_uniform_(classifier.weight, generator=generator)
    nn.init.zeros_(classifier.bias)
    return HeadNetwork(tuner, classifier)


def _hidden_layer(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer as torch.nn.Linear starts it, which itself would draw from, and so change, the global random state."""
    layer = skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


@dataclass(frozen=True, eq=False)
class Trainee:
    """A head to train: `rows` (n,) int64 of the features are its samples, `codes` (N,) int64 all labels in 0 … K−1.

    Both lie where the features do. The order of its samples in each epoch is drawn from `order_seed`.
    """

    network: HeadNetwork
    settings: TrainingSettings
    rows: Tensor
    codes: Tensor
    order_seed: int

    @property
    def kind(self) -> Hashable:
        """What heads must have in common to be trained side by side."""
        shapes = tuple((name, tuple(value.shape)) for name, value in self.network.named_parameters())
        size = len(self.rows), self.settings.batch_size, self.settings.epochs_for(len(self.rows))
        return shapes, self.settings.recipe, size, id(self.codes)

    @property
    def bytes(self) -> int:
        return 4 * sum(value.numel() * value.element_size() for value in self.network.parameters())


def train(trainees: Sequence[Trainee], X: Tensor) -> list[list[float]]:
    """Train networks in place with AdamW and a cosine to 0 per step; return the mean losses of each one's epochs.

    X is (N, D), of any float dtype and on any device: batches of it come to the networks'. Those of one kind train side
    by side, with the results that each would have alone but for rounding. Raises InvalidInputError if one diverges.
    """
    curves: list[list[float]] = [[] for _ in trainees]
    for positions in _side_by_side(trainees):
        for position, curve in zip(positions, _train_stack([trainees[p] for p in positions], X), strict=True):
            curves[position] = curve
    return curves


def _side_by_side(trainees: Sequence[Trainee]) -> Iterator[list[int]]:
    """Yield the positions of those that train together: first those that also see the same batches, then others."""
    same_batches: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, trainee in enumerate(trainees):
        same_batches[trainee.kind, trainee.order_seed, id(trainee.rows)].append(position)
    groups = [positions for positions in same_batches.values() if len(positions) > 1]
    alone: defaultdict[Hashable, list[int]] = defaultdict(list)
    for positions in same_batches.values():
        if len(positions) == 1:
            alone[trainees[positions[0]].kind] += positions
    for group in [*groups, *alone.values()]:
        # Sorted, so that heads with terms, and heads of one learning rate, are slices of the stack.
        group.sort(key=lambda position: _rank(trainees[position].settings))
        size = max(1, _BYTES_TOGETHER // trainees[group[0]].bytes)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _rank(settings: TrainingSettings) -> tuple[bool, float, float]:
    return any(settings.term_weights), settings.learning_rate, settings.weight_decay


class Stack:
    """The networks of H heads as stacked layers."""

    def __init__(self, trainees: Sequence[Trainee]) -> None:
        networks = [trainee.network for trainee in trainees]
        settings = [trainee.settings for trainee in trainees]
        self._settings = settings
        self._recipe = settings[0].recipe
        has_tuner = not isinstance(networks[0].tuner, nn.Identity)
        self._tuner = StackedTuner([network.tuner for network in networks]) if has_tuner else None
        self._classifier = StackedLinear([network.classifier for network in networks])
        self.parameters = [*self._classifier.parameters, *(self._tuner.parameters if self._tuner else [])]
        self._with_terms = slice(sum(not any(one.term_weights) for one in settings), None)
        device = self._classifier.parameters[0].value.device
        weights = torch.tensor([one.term_weights for one in settings], dtype=torch.float64, device=device)
        self._term_weights = weights[self._with_terms].T
        self._workspace = Workspace()
        self._minus_one = self._classifier.parameters[0].value.new_full((1, 1, 1), -1.0)

    def optimizer(self) -> StackOptimizer:
        rates = [one.learning_rate for one in self._settings]
        return StackOptimizer(self.parameters, rates, [one.weight_decay for one in self._settings])

    def loss_and_gradients(self, F: Tensor, y: Tensor) -> Tensor:
        """Return the loss (H,) on a batch F (H or 1, M, D), y (H or 1, M, 1) and write all gradients in place."""
        Z = self._tuner.forward(F) if self._tuner else F
        log_probability = torch.log_softmax(self._classifier.forward(Z), dim=2)
        target = y.expand(len(log_probability), -1, -1)
        loss = log_probability.gather(2, target).mean(dim=(1, 2)).neg_()
        gradient = log_probability.exp_().scatter_add_(2, target, self._minus_one.expand(target.shape))
        gradient /= y.shape[1]
        self._classifier.backward(gradient)
        if self._tuner:
            z_gradient = self._classifier.input_gradient(gradient)
            if self._term_weights.numel():
                self._add_terms(Z, F, loss, z_gradient)
            self._tuner.backward(z_gradient)
        return loss

    def _add_terms(self, Z: Tensor, F: Tensor, loss: Tensor, z_gradient: Tensor) -> None:
        chosen = self._with_terms
        terms = TermsOfHeads(Z[chosen], F if len(F) == 1 else F[chosen], self._recipe, self._workspace)
        loss[chosen] += (self._term_weights * terms.values).sum(dim=0)
        z_gradient[chosen] += terms.z_gradient(self._term_weights)


def _train_stack(trainees: Sequence[Trainee], X: Tensor) -> list[list[float]]:
    settings, num_samples = trainees[0].settings, len(trainees[0].rows)
    bounds, epochs = settings.bounds_for(num_samples), settings.epochs_for(num_samples)
    stack = Stack(trainees)
    optimizer = stack.optimizer()
    like = stack.parameters[0].value
    batches = _batches(trainees, X, bounds, like)
    curves = []
    for epoch in tqdm(range(epochs), disable=not any(one.settings.verbose for one in trainees), unit="epoch"):
        loss_sum = like.new_zeros(len(trainees))
        for step in range(len(bounds)):
            F, y = next(batches)
            loss_sum += stack.loss_and_gradients(F, y) * y.shape[1]
            share = (1 + math.cos(math.pi * (epoch + step / len(bounds)) / epochs)) / 2
            optimizer.step(share)
        curves.append((loss_sum / num_samples).tolist())
        _require_finite(curves[-1], trainees, epoch, epochs)
    for parameter in stack.parameters:
        parameter.write_back()
    return [list(curve) for curve in zip(*curves, strict=True)]


def _require_finite(losses: list[float], trainees: Sequence[Trainee], epoch: int, epochs: int) -> None:
    for loss, trainee in zip(losses, trainees, strict=True):
        if not math.isfinite(loss):
            raise InvalidInputError(
                f"Expected a finite loss, got {loss} in epoch {epoch + 1} of {epochs}: training diverged. Lower "
                f"learning_rate (now {trainee.settings.learning_rate:g}) or scale the features."
            )


@torch.no_grad()
def infer(part: Callable[[Tensor], Tensor], blocks: Iterable[Tensor], device: str) -> Tensor:
    """Return part(X), float64 on the CPU, of an X that comes in blocks of rows; `part` is float64 and on `device`."""
    return torch.cat([part(block.to(device, torch.float64)).cpu() for block in blocks])


class _Gather:
    """Rows of a table by index, in a buffer that is used again; brought to a dtype and device if they differ."""

    def __init__(self, table: Tensor, most_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._table = table
        self._buffer = table.new_empty(most_rows, *table.shape[1:])
        differs = (table.dtype, table.device) != (dtype, device)
        self._brought = torch.empty_like(self._buffer, dtype=dtype, device=device) if differs else None

    def __call__(self, index: Tensor) -> Tensor:
        rows = torch.index_select(self._table, 0, index, out=self._buffer[: len(index)])
        return rows if self._brought is None else self._brought[: len(index)].copy_(rows)


def _batches(
    trainees: Sequence[Trainee], X: Tensor, bounds: list[tuple[int, int]], like: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield F (H, M, D) and y (H, M, 1) for ever, in a new order each epoch, in buffers that are used again.

    F has the dtype and device of `like`. Where all heads see the same batches there is one for all of them: F (1, M, D)
    and y (1, M, 1).
    """
    orders = {(trainee.order_seed, id(trainee.rows)): trainee for trainee in trainees}
    distinct = list(orders.values()) if len(orders) == 1 else list(trainees)
    generators = [torch.Generator().manual_seed(trainee.order_seed) for trainee in distinct]
    codes, count = trainees[0].codes, len(distinct)
    largest = count * max(stop - start for start, stop in bounds)
    features = _Gather(X, largest, like.dtype, like.device)
    targets = _Gather(codes, largest, codes.dtype, like.device)
    while True:
        drawn = [
            one.rows[torch.randperm(len(one.rows), generator=generator).to(X.device)]
            for one, generator in zip(distinct, generators, strict=True)
        ]
        order = torch.stack(drawn)
        for start, stop in bounds:
            index = order[:, start:stop].reshape(-1)
            yield features(index).view(count, stop - start, -1), targets(index).view(count, stop - start, 1)
