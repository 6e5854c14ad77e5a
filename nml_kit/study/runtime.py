"""What each step of a study costs on this machine: seconds of heads and spectra, images per second, parameters.

Steps that are compared take turns within one process, after a round that is not counted, so that a drifting machine
slows all alike. Everything runs on one thread, as networks and heads do in `run_study`. Seconds are wall time: they
differ from run to run and from machine to machine, and never enter the rows of results.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

from nml_kit.backbones import Backbone, image_network
from nml_kit.data import Task
from nml_kit.errors import InvalidInputError
from nml_kit.features import BATCH_ROWS, Features, in_domain_fold, samples_to_test, samples_to_train
from nml_kit.heads import ExactLinearProbe
from nml_kit.pretraining import one_thread
from nml_kit.spectrum import singular_values, spectrum_metrics
from nml_kit.store import Store
from nml_kit.study.conditions import (
    Origin,
    downstream_tasks,
    networks_and_features,
    pretrained_backbone,
    pretraining_task,
    study_origins,
)
from nml_kit.study.fit import fit_all
from nml_kit.study.methods import METHODS, TUNED, candidates_of, make_head, repairs, settings_hash, tuned_networks
from nml_kit.study.profile import Objective, Profile
from nml_kit.tuning import Tuning, tune_on, with_features_of

FROZEN = "features"  # of the network as it is: what every head needs once
EXACT = "exact LP"
HEADS = (*METHODS, EXACT)
SIZES = ["task", "method", "train", "test", "features", "classes", "parameters", "settings_hash"]
_REPEATED = ["quantity", "task", "method", "step"]
_THROUGHPUT_EPOCHS = 2


class Subject(NamedTuple):
    """What is timed: one network of a profile and its features of every downstream task, by task."""

    profile: Profile
    origin: Origin
    backbone: Backbone
    features: dict[str, Features]


def runtime_subject(profile: Profile, *, objective: Objective = "supervised", store: Store | None = None) -> Subject:
    """The profile's first pre-trained network (first ratio, first seed); what the store lacks of it is made."""
    store, tasks = store or Store(), downstream_tasks(profile)
    _, origin, *_ = study_origins(profile, objective)  # the random baseline comes first
    [made] = networks_and_features(profile, [origin], tasks, store=store, jobs=1, progress=False)
    return Subject(profile, *made)


def timed_head(method: str, profile: Profile, seed: int) -> BaseEstimator:
    """The head of a method as the study has it, or the exact linear probe; UnknownNameError for an unknown method.

    >>> from nml_kit import load_profile
    >>> type(timed_head("exact LP", load_profile("smoke"), 0)).__name__
    'ExactLinearProbe'
    """
    return ExactLinearProbe(random_state=seed) if method == EXACT else make_head(method, profile, seed)


def head_seconds(subject: Subject, *, repeats: int = 3) -> pd.DataFrame:
    """Seconds that each head takes to fit the train split and to predict the test split of each ID task.

    One row per task, method, step ("fit", "predict") and repeat: those, seconds, and the columns `SIZES`: numbers of
    train and test samples, features, classes and parameters of the head, and the hash of its settings. Raises
    InvalidInputError for fewer than one repeat.
    """
    frames = []
    for number, task in enumerate(subject.profile.downstream.id):
        fold, features = in_domain_fold(task), subject.features[task]
        train, test = samples_to_train(features, fold), samples_to_test(features, fold)
        heads = {method: timed_head(method, subject.profile, subject.origin.seed) for method in HEADS}
        fitted: dict[str, BaseEstimator] = {}
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for method, head in heads.items():
            calls[method, "fit"] = partial(_fit, fitted, method, head, train)
            calls[method, "predict"] = partial(_predict, fitted, method, test)
        # What is loaded once is loaded after the first task; another such round for each would take a quarter of all.
        found = seconds_in_turn(calls, repeats=repeats, uncounted=int(number == 0))
        sizes = pd.DataFrame([
            {"method": method, "classes": len(fitted[method].classes_), "parameters": head_parameters(fitted[method]),
             "settings_hash": settings_hash(head)} for method, head in heads.items()
        ])  # fmt: skip
        shape = {"task": task, "train": len(train), "test": len(test), "features": train.values.shape[1]}
        frames.append(found.merge(sizes, on="method").assign(**shape))
    return pd.concat(frames, ignore_index=True)


def tuning_seconds(subject: Subject, *, methods: Sequence[str] = (*METHODS, *TUNED), repeats: int = 3) -> pd.DataFrame:
    """Seconds to fit each method on the train samples of each ID task, in the first settings of its grid.

    One row per task, method and repeat: those, step ("fit"), seconds, and parameters (trained ones). Tuning includes
    the linear probe that it starts from. Beside the methods, `FROZEN` is one pass of the train samples through the
    network as it is, which heads and terms need once for good. Raises InvalidInputError for fewer than one repeat.
    """
    profile, frames = subject.profile, []
    tasks, every = downstream_tasks(profile), {**repairs(profile), **tuned_networks(profile)}
    candidates = candidates_of({name: every[name] for name in methods}, profile, subject.origin.seed)
    for number, name in enumerate(profile.downstream.id):
        train, task = samples_to_train(subject.features[name], in_domain_fold(name)), tasks[name]
        counts: dict[str, int] = {FROZEN: 0}
        calls: dict[tuple[str, str], Callable[[], object]] = {
            (FROZEN, "fit"): partial(with_features_of, subject.backbone, task, train)
        }
        for method in methods:
            first = next(iter(candidates[method].values()))
            calls[method, "fit"] = partial(_count_trained, counts, method, first, subject.backbone, task, train)
        # What is loaded once is loaded after the first task.
        found = seconds_in_turn(calls, repeats=repeats, uncounted=int(number == 0))
        frames.append(found.assign(task=name, parameters=found["method"].map(counts)))
    return pd.concat(frames, ignore_index=True)


def _count_trained(
    counts: dict[str, int], name: str, method: BaseEstimator, backbone: Backbone, task: Task, train: Features
) -> None:
    """Fit a method once, and note how many parameters it trained."""
    if isinstance(method, Tuning):
        counts[name] = tune_on(task, backbone, train, method).trained_parameters
    else:
        counts[name] = head_parameters(fit_all({name: method}, train)[name])


def spectrum_seconds(subject: Subject, *, repeats: int = 3) -> pd.DataFrame:
    """Seconds for the singular values of the test split of each ID task, and for all metrics of them.

    One row per task, method ("–"), step ("singular values", "metrics") and repeat: those, seconds, test and features
    (numbers). Raises InvalidInputError for fewer than one repeat.
    """
    frames = []
    for task in subject.profile.downstream.id:
        test = samples_to_test(subject.features[task], in_domain_fold(task)).values
        spectrum = singular_values(test)
        calls: dict[tuple[str, str], Callable[[], object]] = {
            ("–", "singular values"): partial(singular_values, test),
            ("–", "metrics"): partial(spectrum_metrics, spectrum),
        }
        found = seconds_in_turn(calls, repeats=repeats)
        frames.append(found.assign(task=task, test=len(test), features=test.shape[1]))
    return pd.concat(frames, ignore_index=True)


def image_seconds(subject: Subject, *, images: int = 512, repeats: int = 3) -> pd.DataFrame:
    """Seconds to extract features of a part of the pre-training images, and to pre-train on the same part.

    The part has the first classes that hold `images` train samples, or all. Extraction includes decoding and leaves out
    the store; pre-training is two epochs with everything that belongs to them, into a store that is thrown away. One
    row per method ("–"), step ("extraction", "pre-training") and repeat: those, images (that went through the network),
    seconds, and images_per_second. Raises InvalidInputError for fewer than one repeat or image.
    """
    if images < 1:
        raise InvalidInputError(f"Expected at least one image, got {images}.")
    part = _first_classes(pretraining_task(subject.profile), images)
    train = part.select(split="train")
    calls = {("–", "extraction"): partial(_encode, subject.backbone, train),
             ("–", "pre-training"): partial(_pretrain, subject, part)}  # fmt: skip
    found = seconds_in_turn(calls, repeats=repeats)
    count = found["step"].map({"extraction": len(train), "pre-training": len(train) * _THROUGHPUT_EPOCHS})
    return found.assign(images=count, images_per_second=count / found["seconds"])


def seconds_in_turn(
    calls: Mapping[tuple[str, str], Callable[[], object]], *, repeats: int, uncounted: int = 1
) -> pd.DataFrame:
    """Seconds of each call, named by method and step, one after the other in each of `repeats` rounds, on one thread.

    As many rounds as `uncounted` come first: what is loaded or allocated once is paid there. Columns: method, step,
    repeat (from 1), seconds. Raises InvalidInputError for fewer than one repeat.

    >>> seconds_in_turn({("LP", "fit"): list, ("LP", "predict"): list}, repeats=2)["repeat"].tolist()
    [1, 1, 2, 2]
    """
    if repeats < 1:
        raise InvalidInputError(f"Expected at least one repeat, got {repeats}.")
    rows = []
    with threadpool_limits(1), one_thread():
        for repeat in range(1 - uncounted, repeats + 1):
            for (method, step), call in calls.items():
                started = time.perf_counter()
                call()
                rows.append((method, step, repeat, time.perf_counter() - started))
    found = pd.DataFrame(rows, columns=["method", "step", "repeat", "seconds"])
    return found[found["repeat"] > 0].reset_index(drop=True)


def costs(seconds: pd.DataFrame) -> pd.DataFrame:
    """Median with the smallest and the largest repeat, as seconds and as the ratio to LP at the same step.

    `seconds` is that of `head_seconds`. A ratio is taken within each repeat, whose calls followed each other. Columns:
    quantity ("seconds", "ratio to LP"), task, method, step, median, low, high.
    """
    same = ["task", "step", "repeat"]
    probe = seconds.loc[seconds["method"] == "LP", [*same, "seconds"]]
    paired = seconds.merge(probe, on=same, suffixes=("", "_of_lp"))
    values = {"seconds": paired["seconds"], "ratio to LP": paired["seconds"] / paired["seconds_of_lp"]}
    frames = [paired.assign(quantity=quantity, value=value) for quantity, value in values.items()]
    groups = pd.concat(frames).groupby(_REPEATED, sort=False)["value"]
    return groups.agg(median="median", low="min", high="max").reset_index()


def throughput(subject: Subject, seconds: pd.DataFrame) -> pd.DataFrame:
    """Images per second of each step of `image_seconds`, and what that makes of one epoch of the profile.

    Columns: step, median, low, high (images per second over repeats), epoch_images (all train images of pre-training)
    and epoch_seconds (at the median).
    """
    groups = seconds.groupby("step", sort=False)["images_per_second"]
    found = groups.agg(median="median", low="min", high="max").reset_index()
    images = int((pretraining_task(subject.profile).splits == "train").sum())
    return found.assign(epoch_images=images, epoch_seconds=images / found["median"])


def head_parameters(head: BaseEstimator) -> int:
    """Number of trained parameters of a fitted head, its classifier included."""
    if isinstance(head, ExactLinearProbe):
        return int(head.coef_.size + head.intercept_.size)
    return sum(parameter.numel() for parameter in head.module_.parameters())


def backbone_parameters(backbone: Backbone) -> int:
    """Number of parameters that features go through: of a contrastive model its image network alone.

    >>> from nml_kit import load_backbone
    >>> backbone_parameters(load_backbone("clip-compact")) == backbone_parameters(load_backbone("compact-resnet"))
    True
    """
    return sum(parameter.numel() for parameter in image_network(backbone.encode).parameters())


def two_digits(value: float) -> str:
    """Two significant digits as text, below a million without an exponent.

    >>> two_digits(0.0237), two_digits(9.23), two_digits(1234.5)
    ('0.024', '9.2', '1,200')
    """
    return f"{float(f'{value:.2g}'):,g}"


def machine_in_words() -> str:
    """What seconds depend on now: cores, threads that are used, libraries and, where the system tells, the load."""
    cores = cpu_count()
    text = f"one thread of {cores} core{'s' if cores > 1 else ''} ({platform.machine()}, torch {torch.__version__})"
    if not hasattr(os, "getloadavg"):
        return text
    load = os.getloadavg()[0]
    state = "busy: these seconds are larger than on an idle machine" if load > cores else "not overloaded"
    return f"{text}; load of the last minute {load:.1f}, {state}"


def _fit(fitted: dict[str, BaseEstimator], method: str, head: BaseEstimator, train: Features) -> None:
    fitted.update(fit_all({method: head}, train))


def _predict(fitted: dict[str, BaseEstimator], method: str, test: Features) -> None:
    fitted[method].predict(test.values)


def _encode(backbone: Backbone, task: Task) -> None:
    for start in range(0, len(task), BATCH_ROWS):
        backbone(task.inputs(slice(start, start + BATCH_ROWS)))


def _pretrain(subject: Subject, task: Task) -> None:
    """Pre-train as the profile does on clean labels or captions, but for two epochs."""
    field = "contrastive" if subject.origin.objective == "contrastive" else "recipe"
    recipe = getattr(subject.profile, field).model_copy(update={"epochs": _THROUGHPUT_EPOCHS})
    profile = subject.profile.model_copy(update={field: recipe})
    with tempfile.TemporaryDirectory() as directory:
        pretrained_backbone(profile, task, subject.origin._replace(ratio=0.0), store=Store(directory), progress=False)


def _first_classes(task: Task, images: int) -> Task:
    """The first classes that hold so many train images, two at least, with one test image each: evaluation is cheap."""
    train = task.splits == "train"
    held = np.cumsum(np.bincount(task.labels[train], minlength=task.num_classes))
    classes = min(max(2, int(np.searchsorted(held, images)) + 1), task.num_classes)
    part = task.limit(classes=classes, seed=0)
    tests = np.flatnonzero(part.splits == "test")
    _, first = np.unique(part.labels[tests], return_index=True)
    return part.take(np.sort(np.concatenate([np.flatnonzero(part.splits == "train"), tests[first]])))
