"""The network of a head and its training loop: resident features, batches by index, gradients written in place."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nml_kit.errors import InvalidInputError
from nml_kit.regularizers import Recipe, nmtune_terms

_INFERENCE_ROWS = 4096
_DEFAULT_EPOCHS = 30  # the authors' commands
# A step of AdamW moves a weight by at most about the learning rate, so a head that takes few steps stays at
# its random start: with 30 epochs on 150 samples (90 steps) a linear probe of iris has 6 to 60 % accuracy,
# with 500 steps 85 to 95.
_LEAST_STEPS = 500


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


class HeadNetwork(nn.Module):
    """Tuner g (identity for a linear probe) and linear classifier: features F (M, D) → Z (M, D), logits (M, K)."""

    def __init__(self, tuner: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.tuner = tuner
        self.classifier = classifier
        linear = [layer for layer in self.modules() if isinstance(layer, Linear)]
        in_place = {id(parameter) for layer in linear for parameter in layer.parameters()}
        self.accumulated = [p for p in self.parameters() if id(p) not in in_place]

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


class Linear(nn.Module):
    """A linear layer that draws its weights from its own generator and writes its gradients in place.

    torch.nn.Linear would draw from, and so change, the global random state.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator, *, classifier: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        if classifier:
            nn.init.kaiming_uniform_(self.weight, generator=generator)
        else:
            bound = 1 / math.sqrt(inputs)  # torch.nn.Linear's own initialisation
            nn.init.uniform_(self.weight, -bound, bound, generator=generator)
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return _linear_in_place(x, self.weight, self.bias)


class _LinearInPlace(torch.autograd.Function):
    """x Wᵀ + b whose backward writes dW and db into the parameters' preallocated `.grad`.

    Autograd would allocate a new weight-sized gradient each step, and a large one is mapped afresh by the
    system every time: its page faults cost as much as the product. Writing (not adding) is right because each
    layer is used once per step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: nn.Parameter) -> Tensor:
        ctx.save_for_backward(x)
        ctx.parameters = weight, bias
        return torch.addmm(bias, x, weight.T)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        weight, bias = ctx.parameters
        weight.grad = torch.mm(grad_output.T, x, out=weight.grad)
        bias.grad = torch.sum(grad_output, dim=0, out=bias.grad)
        return (grad_output @ weight if ctx.needs_input_grad[0] else None), None, None


_linear_in_place = _LinearInPlace.apply


def build_network(
    num_features: int, num_classes: int, recipe: Recipe | None, hidden: int, generator: torch.Generator
) -> HeadNetwork:
    """Build the network of a head on the CPU; `recipe=None` means no tuner (a linear probe)."""
    tuner: nn.Module = nn.Identity()
    if recipe is not None:
        first = Linear(num_features, hidden, generator)
        last = Linear(hidden, num_features, generator)
        if recipe == "paper":
            tuner = nn.Sequential(first, nn.ReLU(), last)
        else:
            tuner = ResidualTuner(nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(), last), num_features)
    return HeadNetwork(tuner, Linear(num_features, num_classes, generator, classifier=True))


def train(
    network: HeadNetwork, X: Tensor, codes: Tensor, settings: TrainingSettings, generator: torch.Generator
) -> list[float]:
    """Train in place with AdamW and a cosine to 0 per step; return the mean loss of each epoch.

    X is (N, D) and codes int64 (N,) in 0 … K−1, both on the network's device. The order of each epoch is
    drawn from `generator`, on the CPU.
    """
    bounds = _batch_bounds(len(X), settings.batch_size)
    epochs = settings.epochs or max(_DEFAULT_EPOCHS, math.ceil(_LEAST_STEPS / len(bounds)))
    optimizer = _optimizer(network, settings)
    batches = _batches(X, codes, bounds, generator)
    network.train()
    loss_curve: list[float] = []
    for epoch in tqdm(range(epochs), disable=not settings.verbose, unit="epoch"):
        loss_sum = X.new_zeros(())
        for step in range(len(bounds)):
            progress = (epoch + step / len(bounds)) / epochs
            rate = settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2
            F, y = next(batches)
            loss_sum += _step(network, optimizer, F, y, rate, settings) * len(y)
        loss_curve.append(loss_sum.item() / len(X))
        if not math.isfinite(loss_curve[-1]):
            raise InvalidInputError(
                f"Expected a finite loss, got {loss_curve[-1]} in epoch {epoch + 1} of {epochs}: "
                f"training diverged. Lower learning_rate (now {settings.learning_rate:g}) or scale the features."
            )
    network.eval()
    for parameter in network.parameters():
        parameter.grad = None
    return loss_curve


@torch.no_grad()
def infer(part: Callable[[Tensor], Tensor], X: Tensor) -> Tensor:
    """Return part(X), float64 on the CPU, computed in blocks of rows; `part` is float64, X may be narrower."""
    return torch.cat([part(block.double()).cpu() for block in X.split(_INFERENCE_ROWS)])


def _step(
    network: HeadNetwork,
    optimizer: torch.optim.Optimizer,
    F: Tensor,
    y: Tensor,
    rate: float,
    settings: TrainingSettings,
) -> Tensor:
    Z, logits = network(F)
    loss = nn.functional.cross_entropy(logits, y)
    if any(settings.term_weights):
        terms = nmtune_terms(Z, F, recipe=settings.recipe)
        for weight, term in zip(settings.term_weights, terms, strict=True):
            loss = loss + weight * term
    for parameter in network.accumulated:
        parameter.grad = None
    loss.backward()
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    return loss.detach()


def _batches(
    X: Tensor, codes: Tensor, bounds: list[tuple[int, int]], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (F, y) batches for ever, in a new order each epoch, in two buffers that are used again."""
    largest = max(stop - start for start, stop in bounds)
    features, targets = X.new_empty(largest, X.shape[1]), codes.new_empty(largest)
    while True:
        order = torch.randperm(len(X), generator=generator).to(X.device)
        for start, stop in bounds:
            index = order[start:stop]
            yield (
                torch.index_select(X, 0, index, out=features[: len(index)]),
                torch.index_select(codes, 0, index, out=targets[: len(index)]),
            )


def _batch_bounds(num_samples: int, batch_size: int) -> list[tuple[int, int]]:
    """Start and stop of each batch; a last batch of one joins the one before.

    One sample has no variance: BatchNorm fails on it and its covariance is undefined. Joining, unlike
    dropping, keeps every sample in every epoch.
    """
    starts = list(range(0, num_samples, batch_size))
    if len(starts) > 1 and num_samples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_samples], strict=True))


def _optimizer(network: HeadNetwork, settings: TrainingSettings) -> torch.optim.Optimizer:
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # The fused step is several times faster than the default, on a CPU too.
    return torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
