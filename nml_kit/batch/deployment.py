"""Dask clusters made for one batch, by Dask's own deployment classes, as a YAML file says."""

import importlib
import inspect
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from distributed import Client, Nanny, Worker
from distributed.diagnostics.plugin import WorkerPlugin
from pydantic import BaseModel, Field, ValidationError

from nml_kit.batch.cluster import connected
from nml_kit.batch.executors import Executor, OpenExecutor
from nml_kit.errors import DataFileError, InvalidInputError, MissingDependencyError, unknown_name

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
    """A deployment class, its keyword arguments, and how many workers (`scale`, or `adapt` within bounds)."""

    cluster: str
    options: dict[str, Any] = {}
    scale: int | None = Field(None, ge=1)
    adapt: Adapt | None = None


def on_cluster_file(path: str | Path, *, retries: int | None = None) -> OpenExecutor:
    """Execute runs on a cluster that is made when the batch starts and closed when it ends.

    Raises DataFileError or InvalidInputError for a bad file, MissingDependencyError for a package that is missing.
    """
    spec = read_cluster_file(path)
    return partial(_deployed, deployment(spec, path), spec, path, retries)


def read_cluster_file(path: str | Path) -> ClusterFile:
    """Read a cluster file; raises DataFileError or InvalidInputError."""
    try:
        spec = ClusterFile.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"Expected a cluster file at {path}, got: {error}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInputError(f"Expected YAML in {path}, got: {error}") from error
    except ValidationError as error:
        problems = "; ".join(map(_problem, error.errors()))
        raise InvalidInputError(
            f"Expected a cluster (cluster, options, scale or adapt: {{minimum, maximum}}) in {path}, got: {problems}."
        ) from error
    if spec.cluster not in DEPLOYMENTS:
        raise unknown_name(f"cluster class in {path}:", spec.cluster, DEPLOYMENTS)
    if spec.scale and spec.adapt:
        raise InvalidInputError(f"Expected scale or adapt in {path}, got both.")
    if not (spec.scale or spec.adapt or spec.cluster.startswith("distributed.")):
        raise InvalidInputError(f"Expected scale or adapt in {path}: {spec.cluster} starts no worker by itself.")
    return spec


def _problem(error: Any) -> str:
    place = ".".join(map(str, error["loc"])) or "file"
    known = [name for model in (ClusterFile, Adapt) for name in model.model_fields]
    nearest = get_close_matches(str(error["loc"][-1:] and error["loc"][-1]), known, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if error["type"] == "extra_forbidden" and nearest else ""
    return f"{place}: {error['msg']}{hint}"


def deployment(spec: ClusterFile, path: str | Path) -> Callable[..., Any]:
    """The class, or function, that makes the cluster; the names of the options are checked.

    Raises UnknownNameError or MissingDependencyError.
    """
    module, _, name = spec.cluster.rpartition(".")
    try:
        make: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ImportError as error:
        package = DEPLOYMENTS[spec.cluster]
        raise MissingDependencyError(f"{package} is needed for {path}: pip install {package}.") from error
    known = _options(make)
    for option in spec.options:
        if option not in known:
            raise unknown_name(f"option of {spec.cluster} in {path}:", option, known)
    return make


def _options(make: Callable[..., Any]) -> set[str]:
    """The keyword arguments that a deployment takes, also those it hands on to its jobs or workers."""
    if not inspect.isclass(make):
        return set(inspect.signature(make).parameters)
    job = getattr(make, "job_cls", None)
    makers = [*make.__mro__, *(job.__mro__ if job else (*Nanny.__mro__, *Worker.__mro__))]
    taken = [inspect.signature(one.__init__).parameters.values() for one in makers if "__init__" in vars(one)]
    named = {one.name for parameters in taken for one in parameters if one.kind is not one.VAR_KEYWORD}
    return named - {"self", "args", "asynchronous", "loop"}


class _WithoutCtrlC(WorkerPlugin):
    """Ctrl-C at the terminal reaches workers on this machine too: they must live to interrupt their kernels."""

    def setup(self, worker: Worker) -> None:
        with suppress(ValueError):  # not the main thread: signals do not come here
            signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _deployed(
    make: Callable[..., Any], spec: ClusterFile, path: str | Path, retries: int | None, say: Callable[[str], None]
) -> Iterator[Executor]:
    submit = getattr(getattr(make, "job_cls", None), "submit_command", None)
    if submit and shutil.which(submit.split()[0]) is None:
        raise InvalidInputError(f"Expected the command {submit} for {spec.cluster}, got none: run nml where it is.")
    say(f"starting {spec.cluster}")
    try:
        cluster = make(**spec.options)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise InvalidInputError(f"Expected options that {spec.cluster} takes in {path}, got: {error}") from error
    with cluster:
        if spec.scale:
            cluster.scale(spec.scale)
        elif spec.adapt:
            cluster.adapt(**spec.adapt.model_dump())
        with Client(cluster, set_as_default=False) as client:
            client.register_plugin(_WithoutCtrlC())
        with connected(cluster, retries, say) as executor:
            yield executor
