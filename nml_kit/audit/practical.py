"""Real pre-trained models, whose noise nobody knows: LP, MLP and NMTune, tuned alike, on tasks in and out of domain."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer

from nml_kit.audit.report import UNKNOWN, AuditSettings, fit_heads_of
from nml_kit.backbones import load_backbone
from nml_kit.data import Task, load_task, select_rows
from nml_kit.errors import InvalidInputError, unknown_name
from nml_kit.features import Fold, extract_features, in_domain_fold, leave_one_domain_out
from nml_kit.inference import judge_claims
from nml_kit.store import Store
from nml_kit.study import Profile, Source

BAG_OF_WORDS = "bag-of-words"
_WORDS, _WORD = 1024, r"[^\W_]+"  # columns of a bag of words; what a word is
_BAG = f"hashed words, {_WORDS}"


class PracticalTask(NamedTuple):
    """A task without the samples that none of its `folds` uses."""

    task: Task
    folds: tuple[Fold, ...]


class Practical(NamedTuple):
    """What the heads of several backbones reached.

    `rows`: result rows (RESULT_COLUMNS); `samples`: what each head said of each test sample (see `sample_scores`), with
    its domain; `selections`: a row for each candidate (see `selection_rows`). All have the columns backbone and seed.
    """

    rows: pd.DataFrame
    samples: pd.DataFrame
    selections: pd.DataFrame


def practical_tasks(
    profile: Profile,
    id_tasks: Sequence[str],
    ood_tasks: Mapping[str, Sequence[str]],
    sources: Mapping[str, Sequence[str]] | None = None,
) -> list[PracticalTask]:
    """Tasks by name with their folds, cut to the profile's `train_per_class`.

    `ood_tasks` maps a task to the domains that are held out in turn (none named: each). `sources` maps a task to the
    domains that heads learn from: its ID fold is of these alone, its OOD fold tests on the others together. A task that
    is not in `sources` pools its domains in the ID fold, and its OOD folds learn from all but the one held out.
    Raises UnknownNameError for an unknown task or domain, or sources of a task that is not asked for; InvalidInputError
    for an OOD task without a domain to test on, or with one that is trained on.

    >>> from nml_kit import load_profile
    >>> sources = {"emoji-text": ["name"]}
    >>> found = practical_tasks(load_profile("smoke"), ["emoji-text"], {"emoji-text": ["keywords"]}, sources)
    >>> [(fold.protocol, fold.train_domains, fold.test_domains) for fold in found[0].folds]
    [('ID', ('name',), ('name',)), ('OOD', ('name',), ('keywords',))]
    """
    found, sources, names = [], sources or {}, list(dict.fromkeys([*id_tasks, *ood_tasks]))
    if others := [name for name in sources if name not in names]:
        raise unknown_name("task with sources", others[0], names)
    for name in names:
        task = load_task(name)
        folds = _folds(task, tuple(sources.get(name, ())), ood_tasks.get(name))
        folds = folds if name in id_tasks else folds[1:]
        used = np.zeros(len(task), dtype=bool)
        for fold in folds:
            used |= select_rows(task.splits, task.domains, split="train", domains_wanted=fold.train_domains)
            used |= select_rows(task.splits, task.domains, split="test", domains_wanted=fold.test_domains)
        cut = task.take(used).limit(train_per_class=profile.downstream.train_per_class, seed=0)
        found.append(PracticalTask(cut, tuple(folds)))
    return found


def run_practical(
    profile: Profile,
    backbones: Sequence[str],
    tasks: Sequence[PracticalTask],
    *,
    epochs: int = 10,
    store: Store | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Practical:
    """Features of every task from each backbone, then LP, MLP and NMTune tuned on validation parts (`select_head`).

    Backbones are names of `load_backbone`, or "bag-of-words" for texts. Seeds and recipe of heads are the profile's.
    What the store lacks is made in `jobs` processes (None: one per core), and kept. In the rows the noise ratio is NaN
    and the objective "unknown". Source: the paper's Tables 1 and 2.
    """
    store = store or Store()
    settings = AuditSettings(profile.seeds, epochs, profile.head_recipe)
    context = {**UNKNOWN, "experiment": "practical", "profile": profile.name}
    sources = []
    for name in dict.fromkeys(backbones):
        is_bag = name == BAG_OF_WORDS
        backbone = load_backbone(bag_of_words, fingerprint_of_weights=_BAG) if is_bag else load_backbone(name)
        features = {task.name: extract_features(task, backbone, store=store, progress=progress) for task, _ in tasks}
        sources += [Source({**context, "backbone": name, "seed": seed}, features) for seed in profile.seeds]
    folds = [fold for _, task_folds in tasks for fold in task_folds]
    study = fit_heads_of(sources, folds, settings, store=store, jobs=jobs, progress=progress)
    return Practical(study.rows, study.samples, study.selections)


def bag_of_words(texts: NDArray[np.str_]) -> NDArray[np.float32]:
    """Counts (N, 1024) of the words of texts (N,), hashed to columns with signs, each row of unit length.

    A word is a run of letters and digits, in lower case; a text without any is a row of zeros.

    >>> rows = bag_of_words(np.array(["flag: Aruba", "flag_aruba", "red apple"]))
    >>> (rows @ rows.T).round(3)[0].tolist()
    [1.0, 1.0, 0.0]
    """
    words = HashingVectorizer(n_features=_WORDS, token_pattern=_WORD, dtype=np.float32)
    return words.transform(map(str, texts)).toarray()


def judge_models(found: Practical) -> pd.DataFrame:
    """The verdicts of claim C5 for each backbone, by the registered rule (`judge_claims`), in its columns and backbone.

    A real model has one level of noise, which nobody knows: it stands where the rule has the ratios, of which it takes
    the mean. With fewer than three seeds every verdict is "inconclusive".
    """
    one_level = [table.assign(objective=table["backbone"], ratio=0.0) for table in (found.rows, found.samples)]
    verdicts = judge_claims(*one_level).query("claim == 'C5'")
    return verdicts.assign(backbone=verdicts["objective"]).reset_index(drop=True)


def _folds(task: Task, sources: tuple[str, ...], held_out: Sequence[str] | None) -> list[Fold]:
    """The ID fold, then the OOD ones; `held_out` None: none of those, empty: every domain is."""
    if not sources:
        others = leave_one_domain_out(task.name, task.domains.tolist(), held_out) if held_out is not None else []
        return [in_domain_fold(task.name), *others]
    in_domain = Fold(task.name, "ID", sources, sources)
    if held_out is None:
        return [in_domain]
    tested = tuple(held_out or [domain for domain in np.unique(task.domains).tolist() if domain not in sources])
    if not tested or set(tested) & set(sources):
        raise InvalidInputError(
            f"Task {task.name!r}: expected domains to test on beside the sources {', '.join(sources)}, got "
            f"{', '.join(tested) or 'none'}; name others in `ood_tasks` or `sources`."
        )
    return [in_domain, Fold(task.name, "OOD", sources, tested)]  # one: the heads are the same for all domains
