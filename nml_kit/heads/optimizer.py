"""AdamW for stacked heads that differ in learning rate and weight decay (Loshchilov and Hutter, ICLR 2019)."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from nml_kit.heads.layers import StackedParameter

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # torch.optim.AdamW's defaults
# A call per head costs more than eight passes over all heads where a head has fewer values than this.
_FEW_VALUES = 2**15


class StackOptimizer:
    """AdamW on stacked parameters, H heads with `rates` and `decays`; `step(share)` uses that share of each rate.

    Equal neighbours are one slice, on which torch's fused step works: several times faster than its default, on a CPU
    too. Where slices are many and small the same update is made for all heads at once.
    """

    def __init__(self, parameters: Sequence[StackedParameter], rates: Sequence[float], decays: Sequence[float]) -> None:
        slices = _equal_neighbours(list(zip(rates, decays, strict=True)))
        values_per_head = sum(parameter.value[0].numel() for parameter in parameters)
        self._headwise = len(slices) > 1 and values_per_head < _FEW_VALUES
        if self._headwise:
            self._updates = [_HeadwiseUpdate(parameter, rates, decays) for parameter in parameters]
        else:
            self._optimizer = _fused_optimizer(parameters, slices)

    def step(self, share: float) -> None:
        if self._headwise:
            for update in self._updates:
                update.step(share)
            return
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
        self._optimizer.step()


class _HeadwiseUpdate:
    """The update of one stacked parameter (H, …) with a learning rate and a weight decay for each head."""

    def __init__(self, parameter: StackedParameter, rates: Sequence[float], decays: Sequence[float]) -> None:
        self._parameter = parameter
        self._first, self._second = torch.zeros_like(parameter.value), torch.zeros_like(parameter.value)
        self._scratch = torch.empty_like(parameter.value)
        shape = (-1,) + (1,) * (parameter.value.ndim - 1)
        self._rates = parameter.value.new_tensor(rates).view(shape)
        self._decays = parameter.value.new_tensor(decays).view(shape)
        self._steps = 0

    def step(self, share: float) -> None:
        self._steps += 1
        gradient, (beta1, beta2) = self._parameter.gradient, _BETAS
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        second_correction = (1 - beta2**self._steps) ** 0.5
        torch.sqrt(self._second, out=self._scratch).div_(second_correction).add_(_EPSILON)
        torch.div(self._first, self._scratch, out=self._scratch)
        rates: Tensor = self._rates * share
        self._parameter.value.mul_(1 - rates * self._decays)
        self._parameter.value.addcmul_(self._scratch, rates / (1 - beta1**self._steps), value=-1)


def _equal_neighbours(settings: list[tuple[float, float]]) -> list[tuple[slice, float, float]]:
    slices, start = [], 0
    for (rate, decay), members in groupby(settings):
        stop = start + len(list(members))
        slices.append((slice(start, stop), rate, decay))
        start = stop
    return slices


def _fused_optimizer(
    parameters: Sequence[StackedParameter], slices: list[tuple[slice, float, float]]
) -> torch.optim.Optimizer:
    groups = []
    for heads, rate, decay in slices:
        chosen = []
        for stacked in parameters:
            parameter = nn.Parameter(stacked.value[heads])
            parameter.grad = stacked.gradient[heads]
            chosen.append(parameter)
        groups.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=_BETAS, eps=_EPSILON, fused=True)
