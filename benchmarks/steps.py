"""One training step of a head with NMTune's terms, against the formulas as they read and against a plain step."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.measure import Row, compare, where_time_goes
from nml_kit.heads import NMTune

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


def our_fit(multiple: int, samples: int, features: int, weight: float, steps: int) -> Callable[[], None]:
    """A fit of the package of so many steps on one batch; weight 0 is plain MLP tuning."""
    F, y = torch.randn(samples, features), torch.arange(samples) % NUM_CLASSES
    head = NMTune(weights=weight, hidden=multiple * features, epochs=steps, batch_size=samples)
    return lambda: head.fit(F, y)


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


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def rows() -> Iterator[Row]:
    for multiple, samples, features, target in SHAPES:
        size, shape = f"{multiple} D hidden, M = {samples}, D = {features}", (multiple, samples, features)
        large = multiple == 4 and features == 2048
        steps = 50 if features == 512 else 10 if samples <= 256 else 3
        ours, floor = our_fit(*shape, 0.01, steps), repeated(products_alone(*shape), steps)
        yield compare(
            f"NMTune step, {size}",
            "textbook: full SVD, D×D covariance, autograd, default AdamW",
            ours,
            repeated(textbook_step(*shape), steps),
            floor=floor,
            target=target,
            target_floor=0.65 if large else None,
            scale=1 / steps,
            other_scale=1 / steps,
            note=where_time_goes(ours, 1),
        )
        yield compare(
            f"NMTune step, {size}",
            "our plain MLP step, same optimiser",
            ours,
            our_fit(*shape, 0.0, steps),
            floor=floor,
            target=1 / 1.08 if large and samples <= 256 else None,
            scale=1 / steps,
            other_scale=1 / steps,
        )
