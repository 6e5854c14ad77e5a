"""The processes that `torchrun` or `accelerate launch` started: who does what, who writes, how all learn of errors.

One process, not launched, is the same object with `count` 1: every method is then the plain operation, and Accelerate
is neither needed nor imported. All processes must call the same functions with the same arguments, and see one store.
Independent calls run side by side in processes of their own (`in_parallel`).
"""

import os
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from joblib import Parallel, cpu_count, delayed, parallel_config
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from nml_kit.errors import InvalidInputError, MissingDependencyError, ProcessFailedError, StoreError
from nml_kit.store import Entry, Store, fingerprint

# Longer than any honest wait for another process (a shard, an epoch's end, checking a large entry).
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """This process, number `index` of `count`, and its `device`; number 0 leads: it alone writes what all share."""

    count: int
    index: int
    device: torch.device
    accelerator: Any = None

    @property
    def leads(self) -> bool:
        return self.index == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's part of a tensor: consecutive rows, as even as can be, maybe none."""
        return items.tensor_split(self.count)[self.index]

    def tell(self, value: Any) -> Any:
        """The leader's `value`, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order, in every process."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def sum(self, value: float) -> float:
        """The sum over the processes, in float64."""
        local = torch.tensor(value, dtype=torch.float64, device=self.device)
        return value if self.count == 1 else self.accelerator.reduce(local, "sum").item()

    def data_parallel(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages the gradients over the processes."""
        return network if self.count == 1 else self.accelerator.prepare(network)

    def batch_statistics(self) -> AbstractContextManager[Any]:
        """A block in which batch normalisation takes its statistics over the samples of all processes."""
        return nullcontext() if self.count == 1 else BatchStatisticsOfAll()

    def gradients(self, network: nn.Module, *, averaged: bool) -> AbstractContextManager[Any]:
        """A block whose backward pass averages gradients, or only adds to this process's own."""
        return nullcontext() if averaged or self.count == 1 else self.accelerator.no_sync(network)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """A block that all processes leave with success, or all with an error, as soon as all have reached its end.

        The error of one is a ProcessFailedError in those that have none themselves. Inside, no process may wait for
        another, except in blocks that are `agreed` or in `lockstep` themselves.
        """
        try:
            yield
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}")
            raise
        reports = self.gather(None)
        failed = [f"process {index} of {self.count}: {text}" for index, text in enumerate(reports) if text]
        if failed:
            raise ProcessFailedError(f"Stopped, because of an error in {'; '.join(failed)}")

    @contextmanager
    def lockstep(self) -> Iterator[None]:
        """A block in which processes wait for each other all the time, so that an error in one ends them all.

        The others wait for a gradient and cannot be told. They end when this process does, which it must then do: an
        exception that a script catches would let them wait.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1:
                raise
            raise SystemExit(
                f"{traceback.format_exc()}Process {self.index} of {self.count} ends here, and the others with it; "
                "started again, they go on from the last whole epoch."
            ) from error

    def get_or_build(self, store: Store, kind: str, key: dict[str, Any], build: Callable[[Path], Any]) -> Entry:
        """`store.get_or_build`, where the leader holds the lock and all processes run `build` in its directory.

        Only the leader's card and what lies in `work / "entry"` at the end of its `build` count.
        """
        if self.count == 1:
            return store.get_or_build(kind, key, build)
        requests = self.gather(f"{kind} {fingerprint(key)}")
        if len(set(requests)) > 1:
            raise InvalidInputError(
                f"Expected the same task, noise, recipe, backbone and seed in all {self.count} processes, but they ask "
                f"for {', '.join(text[:22] for text in requests)}; let each make the same calls in the same order."
            )
        with self.agreed():
            built = self._lead(store, kind, key, build) if self.leads else None
            if not self.leads and (work := self.tell(None)) is not None:
                build(store.root / work)
        with self.agreed():
            entry = built or store.find(kind, key)
            if entry is None:
                raise StoreError(
                    f"Expected under {store.root} what process 0 has stored, but process {self.index} finds nothing; "
                    "set NML_HOME to a directory that all processes share."
                )
        return entry

    def _lead(self, store: Store, kind: str, key: dict[str, Any], build: Callable[[Path], Any]) -> Entry:
        told = False

        def build_with_all(work: Path) -> Any:
            nonlocal told
            told = True
            return build(store.root / self.tell(work.relative_to(store.root)))

        try:
            return store.get_or_build(kind, key, build_with_all)
        finally:
            if not told:  # nothing to build: the entry is there, or an error is on its way
                self.tell(None)


def launched_count() -> int:
    """How many processes `torchrun` or `accelerate launch` started, 1 if this one was started as usual."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def launched_processes() -> Processes:
    """The processes of this launch, connected at the first call.

    Raises MissingDependencyError if there are several and Accelerate is not installed.
    """
    count, gpu = launched_count(), torch.cuda.is_available()
    if count == 1:
        return Processes(1, 0, torch.device("cuda" if gpu else "cpu"))
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ImportError as error:
        raise MissingDependencyError(
            f"accelerate is needed to run in {count} processes: pip install 'nml_kit[distributed]'."
        ) from error
    # Precision is the recipe's, whatever `accelerate config` says.
    handlers = [InitProcessGroupKwargs(timeout=TIMEOUT)]
    accelerator = Accelerator(cpu=not gpu, mixed_precision="no", kwargs_handlers=handlers)
    if accelerator.num_processes != count:
        raise InvalidInputError(
            f"Expected {count} connected processes (WORLD_SIZE), but Accelerate has {accelerator.num_processes}; a "
            "script that makes its own Accelerator must make it with cpu=True where there is no GPU."
        )
    return Processes(count, accelerator.process_index, accelerator.device, accelerator)


class BatchStatisticsOfAll(TorchFunctionMode):
    """A block in which `F.batch_norm` in training mode uses mean and variance over all processes' samples.

    torch's SyncBatchNorm needs a GPU, and replaces modules, of which timm's do more than normalise.
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


def in_parallel(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], jobs: int | None, title: str) -> None:
    """Make calls that fill the store in `jobs` processes; a bar with `title`, or none if it is empty.

    Each process has one thread, so that results do not depend on how many there are.
    """
    if launched_count() > 1:
        # These divide each network among themselves; processes of their own would not be among them.
        jobs = 1
    own = {"initializer": _end_with, "initargs": (os.getpid(),)}
    workers = parallel_config(backend="loky", n_jobs=jobs or cpu_count(), inner_max_num_threads=1, **own)
    # With one job, joblib stays in this process, whose threads count then.
    with warnings.catch_warnings(), workers, one_thread():
        # One whose memory has grown is replaced between two calls: nothing is lost, and nothing is to be done.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
        done = Parallel(return_as="generator_unordered")(delayed(function)(*arguments) for function, arguments in calls)
        for _ in tqdm(done, title, len(calls), disable=not title, leave=False):
            pass


def _end_with(parent: int) -> None:
    """End this worker with the process that started it: it would finish its call, and hold its locks, for minutes."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, then as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
