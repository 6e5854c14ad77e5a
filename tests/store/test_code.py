"""Two things that compute differently are described differently, two that compute the same alike, in any process."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nml_kit.errors import InvalidInputError
from nml_kit.store import described, fingerprint

OWN = """
import torch
from torch import nn
{above}
class Own(nn.Module):
    def __init__(self, k=0, {name}=1):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.k, self.{name} = k, {name}
    def forward(self, x):
        return {output}
"""


def own(output: str = "self.layers[self.k](x)", above: str = "", name: str = "scale", **settings) -> nn.Module:
    """A network of a class that a cell of a notebook defines, always with the same weights."""
    namespace = {"__name__": "__main__"}
    exec(OWN.format(above=above, name=name, output=output), namespace)  # noqa: S102
    torch.manual_seed(0)
    return namespace["Own"](**settings).eval()


def digest(value) -> str:
    return fingerprint(described(value))


def stacked(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), last)


def hooked() -> nn.Module:
    network = own()
    network.layers[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return network


def with_buffer(value: float) -> nn.Module:
    network = own()
    network.register_buffer("shift", torch.tensor([value]), persistent=False)
    return network


CALLS = "def act(x):\n    return torch.{}(x)"
FORWARD = "act(self.layers[0](x))"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: stacked(nn.ReLU()), lambda: stacked(nn.Tanh())),
        (lambda: stacked(nn.MaxPool2d(2)), lambda: stacked(nn.MaxPool2d(3))),
        (lambda: own(k=0), lambda: own(k=1)),
        (own, lambda: own("self.layers[self.k](x) + 1")),
        (lambda: own(FORWARD, CALLS.format("relu")), lambda: own(FORWARD, CALLS.format("tanh"))),
        (lambda: own("x * RATE", "RATE = 2"), lambda: own("x * RATE", "RATE = 3")),
        (own, hooked),
        (lambda: with_buffer(1.0), lambda: with_buffer(2.0)),
        (own, lambda: own().double()),
        (lambda: functools.partial(torch.clamp, min=0), lambda: functools.partial(torch.clamp, min=1)),
        (lambda: own(scale=[1, {"a": 2}]), lambda: own(scale=[1, {"a": 3}])),
        (lambda: own(scale=np.ones(3)), lambda: own(scale=np.zeros(3))),
        (lambda: torch.fx.symbolic_trace(own("torch.relu(x)")), lambda: torch.fx.symbolic_trace(own("torch.tanh(x)"))),
        (lambda: torch.jit.script(stacked(nn.ReLU())), lambda: torch.jit.script(stacked(nn.Tanh()))),
    ],
    ids=["activation", "pooling", "attribute", "forward", "function", "global", "hook", "buffer", "dtype", "partial",
         "nested", "array", "fx", "script"],
)  # fmt: skip
def test_what_computes_differently_differs_and_what_does_not_is_the_same(first, second):
    assert digest(first()) == digest(first()) != digest(second())


def digests() -> list[str]:
    """Of networks and functions of many kinds."""
    return [digest(value) for value in (stacked(nn.GELU()), own(k=1), hooked(), own(FORWARD, CALLS.format("relu")))]


def test_the_same_in_another_process():
    code = "import torch; from tests.store.test_code import digests; torch.nn.ReLU().register_forward_hook(print); "
    there = subprocess.run([sys.executable, "-c", f"{code}print(*digests())"], capture_output=True, text=True,
                           check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert there.stdout.split() == digests()


def test_where_code_stands_and_what_training_left_does_not_count():
    assert digest(own(above="\n\n\n")) == digest(own())
    trained = own()
    trained.layers[0].weight.grad = torch.ones(3, 3)
    assert digest(trained.train()) == digest(own())


def test_a_network_that_holds_itself_ends():
    network = own()
    network.scale = [network]
    assert digest(network) != digest(own())


def test_what_cannot_be_told_is_refused_with_its_place():
    network = own(name="source", source=iter([1]))
    with pytest.raises(InvalidInputError, match=r"but it\.source is a list_iterator"):
        described(network)
