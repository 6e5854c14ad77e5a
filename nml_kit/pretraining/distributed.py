"""The processes that `torchrun` or `accelerate launch` started: who does what, who writes, how all learn of errors.

One process, not launched, is the same object with `count` 1: every method is then the plain operation, and Accelerate
is neither needed nor imported. All processes must call the same functions with the same arguments, and see one store.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nml_kit.errors import InvalidInputError, MissingDependencyError, ProcessFailedError, StoreError
from nml_kit.pretraining.batch_statistics import BatchStatisticsOfAll
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
        if self.count == 1:
            return value
        local = torch.tensor(value, dtype=torch.float64, device=self.device)
        return self.accelerator.reduce(local, "sum").item()

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
        self._require_one_request(f"{kind} {fingerprint(key)}")
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

    def _require_one_request(self, request: str) -> None:
        requests = self.gather(request)
        if len(set(requests)) > 1:
            raise InvalidInputError(
                f"Expected the same task, noise, recipe, backbone and seed in all {self.count} processes, but they ask "
                f"for {', '.join(text[:22] for text in requests)}; let each make the same calls in the same order."
            )

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
