"""Dask clusters to execute runs on: threads of this process, a scheduler that runs, or what a YAML file describes."""

import importlib
import inspect
import logging
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Nanny, Worker
from distributed.diagnostics.plugin import WorkerPlugin
from pydantic import BaseModel, Field

from nml_kit.batch.suites import Resources, read_model
from nml_kit.errors import InvalidInputError, MissingDependencyError, unknown_name

_CONNECT_SECONDS = 5
_QUEUES = ("HTCondor", "LSF", "Moab", "OAR", "PBS", "SGE", "SLURM")
DEPLOYMENTS = {  # all that a file may name: it never makes Python import something else
    "distributed.LocalCluster": "distributed",
    "distributed.SSHCluster": "distributed",
    "dask_kubernetes.operator.KubeCluster": "dask-kubernetes",
    **{f"dask_jobqueue.{queue}Cluster": "dask-jobqueue" for queue in _QUEUES},
}


class Adapt(BaseModel, frozen=True, extra="forbid"):
    """As many workers as there is work for, within these bounds."""

    minimum: int = Field(0, ge=0)
    maximum: int = Field(ge=1)


class ClusterFile(BaseModel, frozen=True, extra="forbid"):
    """A deployment class of Dask, its keyword arguments, and how many workers (`scale`, or `adapt` within bounds)."""

    cluster: str
    options: dict[str, Any] = {}
    scale: int | None = Field(None, ge=1)
    adapt: Adapt | None = None


def read_cluster_file(path: str | Path) -> ClusterFile:
    """Read a cluster file; raises DataFileError, InvalidInputError or MissingDependencyError."""
    spec = read_model(path, ClusterFile, "a cluster (cluster, options, scale or adapt: {minimum, maximum})")
    if spec.cluster not in DEPLOYMENTS:
        raise unknown_name(f"cluster class in {path}:", spec.cluster, DEPLOYMENTS)
    if spec.scale and spec.adapt:
        raise InvalidInputError(f"Expected scale or adapt in {path}, got both.")
    if not (spec.scale or spec.adapt or spec.cluster.startswith("distributed.")):
        raise InvalidInputError(f"Expected scale or adapt in {path}: {spec.cluster} starts no worker by itself.")
    known = _options(deployment(spec))
    for option in spec.options:
        if option not in known:
            raise unknown_name(f"option of {spec.cluster} in {path}:", option, known)
    return spec


def deployment(spec: ClusterFile) -> Callable[..., Any]:
    """The class, or function, that makes the cluster; raises MissingDependencyError."""
    module, _, name = spec.cluster.rpartition(".")
    try:
        make: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        package = DEPLOYMENTS[spec.cluster]
        raise MissingDependencyError(f"{package} is needed for {spec.cluster}: pip install {package}.") from error
    return make


def _options(make: Callable[..., Any]) -> set[str]:
    """The keyword arguments that a deployment takes, also those it hands on to its jobs or workers."""
    if not inspect.isclass(make):
        return set(inspect.signature(make).parameters)
    job = getattr(make, "job_cls", None)
    makers = [*make.__mro__, *(job.__mro__ if job else (*Nanny.__mro__, *Worker.__mro__))]
    signatures = [inspect.signature(maker.__init__) for maker in makers if "__init__" in vars(maker)]
    parameters = [parameter for signature in signatures for parameter in signature.parameters.values()]
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
    return named - {"self", "args", "asynchronous", "loop"}


class _WithoutCtrlC(WorkerPlugin):
    """Ctrl-C at the terminal reaches workers on this machine too: they must live to interrupt their kernels."""

    def setup(self, worker: Worker) -> None:
        with suppress(ValueError):  # not the main thread: signals do not come here
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cluster_here(jobs: int) -> LocalCluster:
    """Threads of this process, `jobs` at a time, which take runs whatever resources these need."""
    no_pages: dict[str, Any] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
    with dask.config.set(no_pages):
        return LocalCluster(
            n_workers=1,
            threads_per_worker=jobs,
            processes=False,
            dashboard_address=None,
            memory_limit=None,
            silence_logs=logging.CRITICAL,
            resources=dict.fromkeys(Resources.model_fields, math.inf),
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        )


def _cluster_of(spec: ClusterFile) -> Any:
    make = deployment(spec)
    submit = getattr(getattr(make, "job_cls", None), "submit_command", None)
    if submit and shutil.which(submit.split()[0]) is None:
        raise InvalidInputError(f"Expected the command {submit} for {spec.cluster}, got none: run nml where it is.")
    try:
        cluster = make(**spec.options)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise InvalidInputError(f"Expected options that {spec.cluster} takes, got: {error}") from error
    if spec.scale:
        cluster.scale(spec.scale)
    elif spec.adapt:
        cluster.adapt(**spec.adapt.model_dump())
    return cluster


@contextmanager
def connected(where: int | str | ClusterFile, say: Callable[[str], None]) -> Iterator[Client]:
    """Give a client of so many threads here, of a scheduler's address, or of a cluster that is made and closed again.

    One path for all: here, Dask costs 1.0 s of CPU time to import and 0.2 s to start, where papermill takes 4.0 s.
    Raises InvalidInputError if no scheduler answers or a cluster does not start.
    """
    with ExitStack() as stack:
        target: Any = where
        if isinstance(where, ClusterFile):
            say(f"starting {where.cluster}")
            target = stack.enter_context(_cluster_of(where))
        elif isinstance(where, int):
            target = stack.enter_context(_cluster_here(where))
        try:
            client = stack.enter_context(Client(target, timeout=_CONNECT_SECONDS, set_as_default=False))
        except (OSError, ValueError) as error:
            message = f"Expected a Dask scheduler at {where}, got: {error}. `dask scheduler` starts one and prints it."
            raise InvalidInputError(message) from error
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # its errors are our results
        if isinstance(where, ClusterFile):
            client.register_plugin(_WithoutCtrlC())
        yield client
