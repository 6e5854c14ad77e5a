"""Small results whose every name comes from an enemy, and the five explorers of them, nothing mocked and little fitted.

Each name is a word and what a page might take for markup of its own; where the word stands, the rest must follow.
"""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nml_kit.backbones import load_backbone
from nml_kit.batch import RunStatus, write_status
from nml_kit.data import Task, load_task
from nml_kit.study import RESULT_COLUMNS, StudyResults, load_profile
from nml_kit.widgets import Explorer, NoiseComparison, NoiseGallery, RunMonitor, SpectrumExplorer, TermPlayground
from tests.conftest import make_task

MARKUP = {
    "tagged": """"'><img src=x onerror="globalThis.alerted=1">""",
    "closing": "</script><script>globalThis.alerted=1</script>",
    "bold": "<b>x</b>",
    "entity": " a &amp; b",
    "template": "%{x}",  # plotly would put the point's x there
    "dotted": " · x",  # joins a task to its domain in the names of panels
    "formula": "$x$",  # and MathJax, where a page has it, would typeset this
}
NAMES = tuple(word + rest for word, rest in MARKUP.items())
EVERY = " ".join(NAMES)
TASKS = tuple(f"{name}.parquet" for name in (*NAMES, EVERY))  # a data set of one's own goes by its path
_RATIOS = (0.0, 0.3)
_SHARES = np.array([0.5, 0.3, 0.15, 0.05])  # of a spectrum


def hostile_task() -> Task:
    """Images with hostile classes, domains and captions."""
    task = make_task(per_class=8, classes=len(NAMES))
    captions = np.array([f"{NAMES[label]} {sample}" for label, sample in zip(task.labels, task.ids, strict=True)])
    domains = np.where(task.domains == "dark", EVERY, NAMES[1])
    return replace(task, class_names=NAMES, captions=captions, domains=domains)


def write_tasks(directory: Path) -> None:
    """Write the task under each name of TASKS; a name with a slash lands in a directory."""
    task = hostile_task()
    columns = {"label": task.labels, "caption": task.captions, "domain": task.domains, "source": task.ids,
               "id": task.ids, "split": task.splits}  # fmt: skip
    images = pa.array([{"bytes": _png(image)} for image in task.images])
    table = pa.table({"image": images, **{name: pa.array(values) for name, values in columns.items()}})
    table = table.replace_schema_metadata({"class_names": json.dumps(task.class_names)})
    for name in TASKS:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, directory / name)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def noise_comparison() -> NoiseComparison:
    test, parts, spectra, rows = load_task(TASKS[0]).select(split="test"), [], [], []
    for task in TASKS:
        for method in ("LP", EVERY):
            for ratio in _RATIOS:
                wrong = (np.arange(len(test)) % 2 == 1) & (ratio > 0)
                said = np.where(wrong, (test.labels + 1) % len(NAMES), test.labels)
                answers = {"sample": test.ids, "label": test.labels, "prediction": said, "correct": ~wrong}
                key = {"objective": EVERY, "task": task, "protocol": "ID", "method": method, "ratio": ratio, "seed": 0}
                parts.append(pd.DataFrame({**key, **answers}))
                spectra.append(pd.DataFrame({**key, "test_domain": "all", "index": np.arange(1, 5), "share": _SHARES}))
                rows += [{**key, "metric": metric, "value": 1.0} for metric in ("sve", "lsvr")]
    tables = {name: pd.concat(found, ignore_index=True) for name, found in (("samples", parts), ("spectra", spectra))}
    return NoiseComparison(_results(rows=pd.DataFrame(rows), **tables))


def noise_gallery() -> NoiseGallery:
    profile = load_profile("smoke")
    own = profile.pretraining.model_copy(update={"task": TASKS[-1], "classes": None, "train_per_class": None})
    return NoiseGallery(profile.model_copy(update={"pretraining": own, "ratios": (0.0, 0.3, 0.5)}))


def run_monitor() -> RunMonitor:
    runs = Path("runs")
    for place, name in enumerate((*NAMES, EVERY)):
        run_dir = runs / name  # which is what the run is called
        run_dir.mkdir(parents=True, exist_ok=True)
        state = "done" if place else "failed"
        what = {"name": name, "notebook": Path("n.ipynb"), "run_dir": run_dir, "state": state, "seconds": 1.0 + place}
        write_status(RunStatus(**what, error=f"ValueError: {name}"))
        rows = [
            dict.fromkeys(RESULT_COLUMNS, "") | {
                "objective": name, "task": name, "protocol": "ID", "method": method, "metric": "accuracy",
                "ratio": ratio, "value": 0.9 - ratio, "seed": 0, "n": 9, "fraction": 1.0, "label_noise": 0.0}
            for method in ("LP", name) for ratio in _RATIOS
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(run_dir / "rows.parquet")
    return RunMonitor(runs)


def spectrum_explorer() -> SpectrumExplorer:
    parts = []
    for protocol, domain in (("ID", "all"), ("OOD", EVERY)):
        for method in ("LP", EVERY):
            for ratio in (*_RATIOS, np.nan):
                key = {"objective": EVERY, "task": TASKS[-1], "protocol": protocol, "test_domain": domain}
                key |= {"method": method, "ratio": ratio, "seed": 0, "total": 3.0}
                parts.append(pd.DataFrame({**key, "index": np.arange(1, 5), "share": _SHARES}))
    return SpectrumExplorer(_results(spectra=pd.concat(parts, ignore_index=True)))


def term_playground() -> TermPlayground:
    downstream = {"id": [TASKS[-1]], "ood": {TASKS[-1]: [EVERY]}}
    profile = load_profile("smoke").model_dump(mode="json", exclude={"name"}) | {"downstream": downstream}
    Path("hostile.yaml").write_text(json.dumps(profile), encoding="utf-8")
    columns = ["task", "protocol", "test_domain", "objective", "ratio"]
    folds = [(TASKS[-1], protocol, domain, EVERY, 0.3) for protocol, domain in (("ID", "all"), ("OOD", EVERY))]
    return TermPlayground(_results(rows=pd.DataFrame(folds, columns=columns)))


def _results(**tables: pd.DataFrame) -> StudyResults:
    none = pd.DataFrame()
    return StudyResults(
        "hostile.yaml", **{"rows": none, "samples": none, "spectra": none} | tables,
        network=lambda objective, ratio: load_backbone("compact-resnet:8", seed=0),
    )  # fmt: skip


# Each explorer, and choices beside the first that show other texts.
EXPLORERS: dict[Callable[[], Explorer], list[dict]] = {
    noise_comparison: [{"first_method": EVERY, "second_method": EVERY, "task": f"ID · {TASKS[-1]}", "given": NAMES[1]}],
    noise_gallery: [{"own_class": NAMES[0]}, {"objective": "contrastive"}],
    run_monitor: [{"state": "failed"}],
    spectrum_explorer: [{"task": f"OOD · {TASKS[-1]} · {EVERY}", "method": EVERY}],
    term_playground: [{"held_out": EVERY}],
}
