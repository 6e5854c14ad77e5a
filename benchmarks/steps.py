"""One training step of a head with NMTune's terms, against the formulas as they read and against a plain step."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, compare, where_time_goes
from nml_kit.heads import Stack, Trainee, TrainingSettings, build_network

NUM_CLASSES = 10
# hidden width as a multiple of D, samples M, features D, target against the textbook step
SHAPES = (
    (4, 64, 512, 2.5),
    (4, 64, 2048, 3.0),
    (4, 256, 2048, 2.2),
    (4, 1024, 2048, 1.6),
    (1, 64, 512, None),
    (1, 64, 2048, None),
)


def textbook_terms(Z: Tensor, F: Tensor) -> Tensor:
    """NMTune's terms as the formulas read: a D×D covariance and a full SVD, differentiated by autograd."""
    unit = nn.functional.normalize
    mse = (unit(F) - unit(Z)).square().sum(1).mean()
    covariance = torch.cov(Z.T)
    cov = (covariance - torch.diag(covariance.diagonal())).square().sum() / Z.shape[1]
    sigma = torch.linalg.svd(Z, full_matrices=False).S
    return mse + cov - sigma[0] / sigma.sum()


def textbook_step_on(multiple: int, samples: int, features: int) -> Callable[[Tensor], None]:
    """A step on features F (M, D) with modules, autograd and AdamW with its default settings."""
    hidden = multiple * features
    tuner = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, features))
    classifier = nn.Linear(features, NUM_CLASSES)
    optimizer = torch.optim.AdamW([*tuner.parameters(), *classifier.parameters()], lr=1e-3)
    y = torch.randint(0, NUM_CLASSES, (samples,))

    def step(F: Tensor) -> None:
        Z = tuner(F)
        loss = nn.functional.cross_entropy(classifier(Z), y) + 0.01 * textbook_terms(Z, F)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def textbook_step(multiple: int, samples: int, features: int) -> Callable[[], None]:
    """That step on one batch."""
    step, F = textbook_step_on(multiple, samples, features), torch.randn(samples, features)
    return lambda: step(F)


def our_step(multiple: int, samples: int, features: int, weight: float) -> Callable[[], None]:
    """The step of the package's own training loop; weight 0 is a plain MLP step."""
    network = build_network(features, NUM_CLASSES, "paper", multiple * features, torch.Generator().manual_seed(0))
    settings = TrainingSettings("paper", (weight,) * 3, 1, samples, 1e-3, 1e-4, False)
    codes = torch.randint(0, NUM_CLASSES, (samples,))
    stack = Stack([Trainee(network, settings, torch.arange(samples), codes, order_seed=0)])
    optimizer = stack.optimizer()
    F, y = torch.randn(1, samples, features), codes.view(1, samples, 1)

    def run() -> None:
        stack.loss_and_gradients(F, y)
        optimizer.step(1.0)

    return run


def products_alone(multiple: int, samples: int, features: int) -> Callable[[], None]:
    """The five products of the two layers, forward and backward, into memory that is there already."""
    hidden = multiple * features
    F, H, Z = torch.randn(samples, features), torch.randn(samples, hidden), torch.randn(samples, features)
    first, last = torch.randn(hidden, features), torch.randn(features, hidden)
    gradients = torch.empty_like(first), torch.empty_like(last), torch.empty_like(H), torch.empty_like(Z)

    def run() -> None:
        torch.mm(F, first.T, out=gradients[2])
        torch.mm(H, last.T, out=gradients[3])
        torch.mm(Z.T, H, out=gradients[1])
        torch.mm(Z, last, out=gradients[2])
        torch.mm(H.T, F, out=gradients[0])

    return run


def rows() -> Iterator[Row]:
    for multiple, samples, features, target in SHAPES:
        size = f"{multiple} D hidden, M = {samples}, D = {features}"
        shape = (multiple, samples, features)
        floor = products_alone(*shape)
        large = multiple == 4 and features == 2048
        ours = our_step(*shape, 0.01)
        loops = 20 if features == 512 else 3 if samples <= 256 else 1
        yield compare(
            f"NMTune step, {size}",
            "textbook: full SVD, D×D covariance, autograd, default AdamW",
            ours,
            textbook_step(*shape),
            floor=floor,
            target=target,
            target_floor=0.65 if large else None,
            loops=loops,
            note=where_time_goes(ours),
        )
        yield compare(
            f"NMTune step, {size}",
            "our plain MLP step, same optimiser",
            ours,
            our_step(*shape, 0.0),
            floor=floor,
            target=1 / 1.08 if large and samples <= 256 else None,
            loops=loops,
        )
