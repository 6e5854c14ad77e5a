"""Tuning the backbone against heads on its frozen features: accuracy over a profile's ratios and seeds, and cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score

from nml_kit.backbones import Backbone
from nml_kit.data import Task
from nml_kit.errors import unknown_name
from nml_kit.features import Features, Fold, in_domain_fold, samples_to_test, samples_to_train
from nml_kit.pretraining import in_parallel
from nml_kit.store import Store, write_tensors
from nml_kit.study.conditions import downstream_tasks, pretrained_backbone, pretraining_task
from nml_kit.study.evaluate import fit_all, head_settings, outcome
from nml_kit.study.extraction import Source, study_folds, study_sources
from nml_kit.study.profile import Objective, Profile
from nml_kit.study.repairs import RepairStudy, repair_candidates
from nml_kit.study.run import METHODS, Study, StudyRun
from nml_kit.study.runtime import Subject, head_parameters, seconds_in_turn
from nml_kit.study.selection import (
    VALIDATION_FRACTION,
    Candidates,
    Choice,
    Selection,
    as_selection,
    expanded,
    select_heads,
    validation_split,
)
from nml_kit.tuning import Tuning, start_of_classifier, tune_on, with_features_of

# Raised whenever the same request would choose otherwise or give other predictions or spectra.
TUNING_VERSION = 1
TUNING_KIND = "tuning"
TUNED = ("full", "full + terms", "LoRA", "LoRA + terms")
COMPARED = (*METHODS, *TUNED)
FROZEN = "features"  # of the network as it is: what every head needs once
# A pass that trains costs many times one that trains a head.
_SHARE_OF_HEAD_EPOCHS = 3


def tuning_candidates(method: str, profile: Profile, seed: int) -> Candidates:
    """The candidates of a way to tune, fixed before any result was seen: learning rates, with terms also λ.

    A third of the epochs of the profile's heads. Raises UnknownNameError for a method that is not one of `TUNED`.

    >>> from nml_kit import load_profile
    >>> list(expanded(tuning_candidates("LoRA", load_profile("smoke"), seed=0)))
    ['LoRA learning_rate=0.001', 'LoRA learning_rate=0.01']
    """
    if method not in TUNED:
        raise unknown_name("way to tune", method, TUNED)
    is_lora = method.startswith("LoRA")
    epochs = max(1, profile.head_epochs // _SHARE_OF_HEAD_EPOCHS)
    base = Tuning(method="lora" if is_lora else "full", epochs=epochs, random_state=seed)
    grid: dict[str, list[float]] = {"learning_rate": [1e-3, 1e-2] if is_lora else [1e-4, 1e-3]}
    return {method: (base, grid | ({"weights": [0.01, 0.1]} if "terms" in method else {}))}


class TuningChoice(NamedTuple):
    """What `select_tuning` is asked for; `candidates` are `Tuning` settings or (settings, grid), by name."""

    task: Task
    backbone: Backbone
    features: Features
    fold: Fold
    candidates: Candidates
    method: str
    seed: int


def select_tuning(choice: TuningChoice, store: Store | None = None) -> Selection:
    """`select_head` for backbones that are tuned: the same validation part, the same single look at the test samples.

    `choice.features` are the frozen ones of the whole task. The result's singular values are those of the tuned
    features of the test samples. The store keeps the result, not the network. Raises what `fine_tune` raises.
    """
    task, backbone, features, fold, _, method, _ = choice
    settings, test = expanded(choice.candidates), samples_to_test(features, fold)

    def build(work: Path) -> dict[str, Any]:
        train = samples_to_train(features, fold)
        accuracy = _validation_accuracy(choice, settings, train)
        winner = list(settings)[int(np.argmax(accuracy))]
        model = tune_on(task, backbone, train, settings[winner])
        arrays = {"validation_accuracy": accuracy, **outcome(model.head, with_features_of(model.backbone, task, test))}
        write_tensors(work / "entry" / "tuning.safetensors", arrays)
        scores = dict(zip(settings, accuracy.tolist(), strict=True))
        return {"task": fold.task, "protocol": fold.protocol, "method": method, "chosen": winner, "validation": scores,
                "trained_parameters": model.trained_parameters}  # fmt: skip

    arrays = (store or Store()).get_or_build(TUNING_KIND, _key(choice), build).tensors("tuning.safetensors")
    return as_selection(arrays, settings, fold, method, test)


def run_tuning_study(
    profile: Profile,
    *,
    objective: Objective = "supervised",
    methods: Sequence[str] = COMPARED,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> RepairStudy:
    """Choose and test heads and tuned networks on every fold of the profile; what the store lacks is made, and kept.

    All are tuned alike: settings are chosen on one validation part. The random-initialised network is left out. Raises
    UnknownNameError for a method that is not one of `COMPARED`. Other arguments: see `run_study`.

    >>> from nml_kit import load_profile
    >>> smallest = {"id": ["digits"], "ood": {"icons": ["outline"]}, "train_per_class": 4}
    >>> profile = Profile.model_validate({**load_profile("smoke").model_dump(), "downstream": smallest})
    >>> found = run_tuning_study(profile, methods=("LP", "LoRA"), jobs=1, progress=False)
    >>> sorted(found.study.rows["method"].unique())
    ['LP', 'LoRA']
    """
    if unknown := set(methods) - set(COMPARED):
        raise unknown_name("method", min(unknown), COMPARED)
    store, tasks = store or Store(), downstream_tasks(profile)
    sources = study_sources(profile, objective, store=store, jobs=jobs, progress=progress)
    plan = [(source, request) for source in sources if not np.isnan(source.origin.ratio)
            for request in _requests(profile, source, tasks, methods, store)]  # fmt: skip
    tuned = [request for _, request in plan if isinstance(request, TuningChoice)]
    heads = [request for _, request in plan if isinstance(request, Choice)]
    in_parallel([(select_tuning, (request, store)) for request in tuned if not _is_known(request, store)], jobs,
                "tuning" if progress else "")  # fmt: skip
    of_tuned = iter([select_tuning(request, store) for request in tuned])
    of_heads = iter(select_heads(heads, store=store, jobs=jobs, progress=progress))
    found = [(source, next(of_tuned if isinstance(request, TuningChoice) else of_heads)) for source, request in plan]
    runs = tuple(StudyRun(source.origin, source.backbone, selection.evaluation) for source, selection in found)
    return RepairStudy(Study(profile, runs), tuple((source.origin, selection) for source, selection in found))


def tuning_seconds(subject: Subject, *, methods: Sequence[str] = COMPARED, repeats: int = 3) -> pd.DataFrame:
    """Seconds to fit each method on the train samples of each ID task, in the first settings of its grid.

    One row per task, method and repeat: those, step ("fit"), seconds, and parameters (trained ones). Tuning includes
    the linear probe that it starts from. Beside the methods, `FROZEN` is one pass of the train samples through the
    network as it is, which heads and terms need once for good. Raises InvalidInputError for fewer than one repeat.
    """
    frames = []
    tasks = downstream_tasks(subject.profile)
    for number, name in enumerate(subject.profile.downstream.id):
        train = samples_to_train(subject.features[name], in_domain_fold(name))
        counts: dict[str, int] = {FROZEN: 0}
        calls: dict[tuple[str, str], Callable[[], object]] = {
            (FROZEN, "fit"): partial(with_features_of, subject.backbone, tasks[name], train)
        }
        for method in methods:
            calls[method, "fit"] = partial(_fit, counts, method, subject, tasks[name], train)
        # What is loaded once is loaded after the first task.
        found = seconds_in_turn(calls, repeats=repeats, uncounted=int(number == 0))
        frames.append(found.assign(task=name, parameters=found["method"].map(counts)))
    return pd.concat(frames, ignore_index=True)


def _fit(counts: dict[str, int], method: str, subject: Subject, task: Task, train: Features) -> None:
    """Fit a method once, and note how many parameters it trained."""
    profile, seed = subject.profile, subject.origin.seed
    candidates = (tuning_candidates if method in TUNED else repair_candidates)(method, profile, seed)
    first = next(iter(expanded(candidates).values()))
    if method in TUNED:
        counts[method] = tune_on(task, subject.backbone, train, first).trained_parameters
    else:
        counts[method] = head_parameters(fit_all({method: first}, train)[method])


def _requests(
    profile: Profile, source: Source, tasks: Mapping[str, Task], methods: Sequence[str], store: Store
) -> Iterator[Choice | TuningChoice]:
    seed = source.origin.seed
    backbone = pretrained_backbone(profile, pretraining_task(profile), source.origin, store=store, progress=False)
    for fold in study_folds(profile, source.features, seed=seed):
        features, task = source.features[fold.task], tasks[fold.task]
        for method in methods:
            if method in TUNED:
                candidates = tuning_candidates(method, profile, seed)
                yield TuningChoice(task, backbone, features, fold, candidates, method, seed)
            else:
                yield Choice(features, fold, repair_candidates(method, profile, seed), method, seed)


def _validation_accuracy(choice: TuningChoice, settings: Mapping[str, Any], train: Features) -> NDArray[np.float64]:
    """Accuracy (C,) of each candidate, tuned on the rest of the train samples, on the validation part."""
    rest, part = validation_split(train, choice.seed)
    probes = {seed: start_of_classifier(rest, seed) for seed in {one.random_state for one in settings.values()}}
    scores = []
    for one in settings.values():
        model = tune_on(choice.task, choice.backbone, rest, one, probe=probes[one.random_state])
        seen = with_features_of(model.backbone, choice.task, part)
        scores.append(accuracy_score(part.labels, model.head.predict(seen.values)))
    return np.array(scores)


def _is_known(choice: TuningChoice, store: Store) -> bool:
    return store.find(TUNING_KIND, _key(choice)) is not None


def _key(choice: TuningChoice) -> dict[str, Any]:
    fold, settings = choice.fold, expanded(choice.candidates)
    return {"arrow": "tune", "version": TUNING_VERSION, "data": choice.features.protocol_fingerprint,
            "train_domains": fold.train_domains, "test_domains": fold.test_domains, "draw": fold.draw,
            "validation": {"fraction": VALIDATION_FRACTION, "seed": choice.seed},
            "candidates": [[name, head_settings(one)] for name, one in settings.items()]}  # fmt: skip
