"""Batch normalisation over the samples of all processes, on any device (torch's SyncBatchNorm needs a GPU)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class BatchStatisticsOfAll(TorchFunctionMode):
    """A block in which `F.batch_norm` in training mode uses mean and variance over all processes' samples.

    It replaces the function, not the modules: these keep their names and state, and layers that normalise and then do
    more (timm's BatchNormAct2d) stay whole.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; each one's gradient is the sum of the gradients of all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradients[0])


def _batch_norm(
    input: Tensor,  # the names and defaults of F.batch_norm
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    shape = [1, -1] + [1] * (input.ndim - 2)
    others = [dim for dim in range(input.ndim) if dim != 1]
    values = input.to(torch.promote_types(input.dtype, torch.float32))
    size = values.new_tensor([values.numel() // values.shape[1]])  # 0 in a process without a sample
    sums, count = _SumOverProcesses.apply(torch.cat([values.sum(others), size])).split([values.shape[1], 1])
    mean = sums / count
    # The mean first, then squares of what is left: sums of x² would lose digits where the mean is large.
    centred = values - mean.view(shape)
    variance = _SumOverProcesses.apply(centred.square().sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    normalised = centred * scale.view(shape)
    return (normalised if bias is None else normalised + bias.view(shape)).to(input.dtype)
