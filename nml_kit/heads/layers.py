"""Layers of several heads at once, with hand-written gradients that are written in place.

H heads of one shape train side by side: every tensor has a leading head axis. Autograd would record some sixty
operations a step and allocate each weight-sized gradient anew, whose page faults cost as much as the product; on small
heads that is most of the time.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from nml_kit.heads.workspace import Workspace


class StackedParameter:
    """One parameter of H modules as a single tensor (H, …), with a gradient of the same shape to write into."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        data = [parameter.detach() for parameter in parameters]
        self.value = data[0][None] if len(data) == 1 else torch.stack(data)
        self.gradient = torch.zeros_like(self.value)

    def write_back(self) -> None:
        """Copy the trained values to the modules they came from."""
        for parameter, trained in zip(self._parameters, self.value, strict=True):
            parameter.detach().copy_(trained)


class StackedLinear:
    """H linear layers: inputs (H, M, I), or one (1, M, I) for all heads, to outputs (H, M, O)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._weight = StackedParameter([layer.weight for layer in layers])
        self._bias = StackedParameter([layer.bias for layer in layers])
        self.parameters = [self._weight, self._bias]
        self._inputs = self._weight.value
        self._space = Workspace()

    def forward(self, inputs: Tensor) -> Tensor:
        self._inputs = inputs
        weight, bias = self._weight.value, self._bias.value
        if self._is_shared(inputs):
            # One wide product in place of H narrow ones: ten classes alone do not fill the machine.
            heads, width, _ = weight.shape
            wide = self._space.tensor("wide", (inputs.shape[1], heads * width), inputs)
            torch.addmm(bias.view(-1), inputs[0], weight.view(heads * width, -1).T, out=wide)
            return wide.view(-1, heads, width).transpose(0, 1)
        heads, width, samples = *weight.shape[:2], inputs.shape[1]
        if width < samples:
            # Narrow outputs are twice as fast as rows than as columns.
            outputs = self._space.tensor("outputs", (heads, width, samples), inputs)
            return torch.baddbmm(bias[:, :, None], weight, inputs.mT, out=outputs).mT
        outputs = self._space.tensor("outputs", (heads, samples, width), inputs)
        return torch.baddbmm(bias[:, None], inputs, weight.mT, out=outputs)

    def backward(self, gradient: Tensor) -> None:
        """Write the gradients of the parameters from that of the outputs."""
        weight, inputs = self._weight, self._inputs
        if self._is_shared(inputs):
            flat = gradient.transpose(0, 1).reshape(gradient.shape[1], -1)
            torch.mm(flat.T, inputs[0], out=weight.gradient.view(flat.shape[1], -1))
        else:
            torch.bmm(gradient.mT, inputs, out=weight.gradient)
        torch.sum(gradient, dim=1, out=self._bias.gradient)

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the inputs (H, M, I) from that of the outputs."""
        weight = self._weight
        shape = (*gradient.shape[:2], weight.value.shape[2])
        return torch.bmm(gradient, weight.value, out=self._space.tensor("gradient", shape, gradient))

    def _is_shared(self, inputs: Tensor) -> bool:
        return len(inputs) == 1 < len(self._weight.value)


class StackedBatchNorm:
    """H batch normalisations over M in training mode, whose running statistics follow torch.nn.BatchNorm1d's."""

    def __init__(self, layers: Sequence[nn.BatchNorm1d]) -> None:
        self._layers = layers
        self._gain = StackedParameter([layer.weight for layer in layers])
        self._shift = StackedParameter([layer.bias for layer in layers])
        self.parameters = [self._gain, self._shift]
        self._normal = self._inverse_deviation = self._gain.value

    def forward(self, inputs: Tensor) -> Tensor:
        variance, mean = torch.var_mean(inputs, dim=1, correction=0, keepdim=True)
        self._inverse_deviation = (variance + self._layers[0].eps).rsqrt_()
        self._normal = (inputs - mean).mul_(self._inverse_deviation)
        self._follow(mean[:, 0], variance[:, 0], inputs.shape[1])
        return torch.addcmul(self._shift.value[:, None], self._normal, self._gain.value[:, None])

    def backward(self, gradient: Tensor) -> Tensor:
        """Write the gradients of gain and shift; return that of the inputs (H, M, h)."""
        torch.sum(gradient, dim=1, out=self._shift.gradient)
        torch.sum(gradient * self._normal, dim=1, out=self._gain.gradient)
        samples = gradient.shape[1]
        result = torch.addcmul(gradient, self._normal, self._gain.gradient[:, None], value=-1 / samples)
        result -= self._shift.gradient[:, None] / samples
        return result.mul_(self._gain.value[:, None] * self._inverse_deviation)

    def _follow(self, means: Tensor, variances: Tensor, samples: int) -> None:
        unbiased = variances * (samples / max(samples - 1, 1))
        for layer, mean, variance in zip(self._layers, means, unbiased, strict=True):
            momentum = layer.momentum or 0.0
            layer.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            layer.running_var.lerp_(variance, momentum)  # type: ignore[union-attr]
            layer.num_batches_tracked.add_(1)  # type: ignore[union-attr]


class StackedTuner:
    """H tuners g of one recipe: features F (H, M, D), or one (1, M, D) for all heads, to Z (H, M, D)."""

    def __init__(self, tuners: Sequence[Any]) -> None:
        residual = hasattr(tuners[0], "scale")
        layers = [list(tuner.mlp if residual else tuner) for tuner in tuners]
        size = 3 if residual else 2  # parts of a hidden layer: linear, BatchNorm, ReLU
        starts = range(0, len(layers[0]) - 1, size)
        self._linear = [StackedLinear([part[start] for part in layers]) for start in starts]
        self._norms = [StackedBatchNorm([part[start + 1] for part in layers]) if residual else None for start in starts]
        self._last = StackedLinear([part[-1] for part in layers])
        self._scale = StackedParameter([tuner.scale for tuner in tuners]) if residual else None
        self.parameters = [
            *chain.from_iterable(
                [*linear.parameters, *(norm.parameters if norm else [])]
                for linear, norm in zip(self._linear, self._norms, strict=True)
            ),
            *self._last.parameters,
            *([self._scale] if self._scale else []),
        ]
        self._hidden: list[Tensor] = []
        self._output = self._last.parameters[0].value

    def forward(self, F: Tensor) -> Tensor:
        hidden, self._hidden = F, []
        for linear, norm in zip(self._linear, self._norms, strict=True):
            hidden = linear.forward(hidden)
            if norm:
                hidden = norm.forward(hidden)
            hidden = hidden.relu_()
            self._hidden.append(hidden)
        self._output = self._last.forward(hidden)
        return torch.addcmul(F, self._output, self._scale.value[:, None]) if self._scale else self._output

    def backward(self, gradient: Tensor) -> None:
        """Write the gradients of the parameters from that of Z (H, M, D)."""
        if self._scale:
            torch.sum(gradient * self._output, dim=1, out=self._scale.gradient)
            gradient = gradient * self._scale.value[:, None]
        layer = self._last
        layer.backward(gradient)
        for linear, norm, hidden in zip(self._linear[::-1], self._norms[::-1], self._hidden[::-1], strict=True):
            gradient = layer.input_gradient(gradient)
            torch.ops.aten.threshold_backward(gradient, hidden, 0, grad_input=gradient)
            if norm:
                gradient = norm.backward(gradient)
            layer = linear
            layer.backward(gradient)
