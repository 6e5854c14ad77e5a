"""Every notebook is executed once, in the profile of seconds with two tasks; all tests of it share that run."""

from collections.abc import Callable
from functools import cache, partial

import pandas as pd
import pytest

from nml_kit.data import load_task
from nml_kit.store import Store
from nml_kit.study import Study, load_profile, run_study
from tests.one_notebook import SMALLEST, NotebookRun, run_notebook

PARAMS = {
    "03_spectra": {"task": "digits"},
    "04_nmtune": {"task": "digits"},
    "06_zero_shot": {"seeds": [0]},
    "07_spectrum_metrics": {"task": "digits", "draws": 2},
    "12_beyond_the_black_box": {"id_task": "digits", "repeats": 2},
    "13_real_models": {"modality": "language", "epochs": 2},
}


@pytest.fixture(scope="session")
def ran(tmp_path_factory, smoke_home) -> Callable[[str], NotebookRun]:
    """The run of a notebook, by its name."""
    root = tmp_path_factory.mktemp("notebooks")
    task = load_task("emoji-text").select(domains=("name", "keywords")).limit(classes=10, seed=0)
    texts, columns = root / "texts.parquet", {"label": task.labels, "domain": task.domains, "split": task.splits}
    pd.DataFrame({"text": task.captions, "id": task.ids, **columns}).to_parquet(texts)
    domains = {"ood_tasks": {str(texts): ["keywords"]}, "sources": {str(texts): ["name"]}, "id_tasks": [str(texts)]}
    more = {"13_real_models": domains}

    @cache
    def run(name: str) -> NotebookRun:
        return run_notebook(name, root, smoke_home, profile=SMALLEST, **PARAMS.get(name, {}), **more.get(name, {}))

    return run


@pytest.fixture(scope="session")
def study_again(smoke_home) -> Callable[..., Study]:
    """`run_study` in the profile of the notebooks, from the store that they filled."""
    return partial(run_study, load_profile(SMALLEST), store=Store(smoke_home), jobs=1, progress=False)
