"""The run monitor: what it says about statuses and results that the test has written."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from nml_kit.batch import (
    RunStatus,
    accuracy_lines,
    progress_table,
    read_statuses,
    result_accuracies,
    run_lock,
    write_status,
)
from nml_kit.errors import InvalidInputError, UnknownNameError
from nml_kit.plots import found_lines, progress_bars
from nml_kit.study import RESULT_COLUMNS
from nml_kit.widgets.monitor import RunMonitor

EVIL = "<img src=x onerror=alert(1)>"


def write_run(runs: Path, name: str, state: str, **fields) -> Path:
    run_dir = runs / name
    run_dir.mkdir(parents=True, exist_ok=True)
    write_status(RunStatus(name=name, notebook=Path("n.ipynb"), run_dir=run_dir, state=state, **fields))
    return run_dir


def result_rows(value_of=lambda ratio, method, task, seed: 0.5, methods=("LP", "MLP"), **changed) -> pd.DataFrame:
    rows = [
        {
            "experiment": "e", "profile": "smoke", "recipe": "r", "noise": "uniform", "backbone": "b", "ratio": ratio,
            "objective": "supervised", "seed": seed, "task": task, "protocol": "ID", "train_domain": "all",
            "test_domain": "all", "fraction": 1.0, "label_noise": 0.0, "method": method, "metric": metric, "n": 10,
            "settings_hash": "0", "version": "1",
            "value": value_of(ratio, method, task, seed) if metric == "accuracy" else 3.0,
        }
        for ratio in (float("nan"), 0.0, 0.3)
        for method in methods
        for task in ("digits", "icons")
        for seed in (0, 1)
        for metric in ("accuracy", "sve")
    ]  # fmt: skip
    return pd.DataFrame(rows)[list(RESULT_COLUMNS)].assign(**changed)


@pytest.fixture
def runs(tmp_path) -> Path:
    runs = tmp_path / "runs"
    write_run(runs, "a", "done", seconds=12.5)
    write_run(runs, "b", "failed", seconds=40.0, error="ValueError:\n  expected <b>more</b>")
    write_run(runs, "c", "waiting")
    return runs


def test_the_table_counts_and_lists_the_runs(runs):
    monitor = RunMonitor(runs)
    shown = monitor.table.value
    assert "3 runs: 1 done, 1 failed, 1 waiting, at " in shown
    assert shown.count("<tr>") == 1 + 3
    assert "ValueError: expected &lt;b&gt;more&lt;/b&gt;" in shown
    assert shown.index(">a<") < shown.index(">b<") < shown.index(">c<")
    assert ">12.5<" in shown


def test_choices_filter_and_sort(runs):
    monitor = RunMonitor(runs)
    monitor.choose(state="failed")
    assert ">b<" in monitor.table.value
    assert ">a<" not in monitor.table.value
    assert "3 runs: " in monitor.table.value
    monitor.choose(state="all", order="slowest first")
    shown = monitor.table.value
    assert shown.index(">b<") < shown.index(">a<") < shown.index(">c<")


def test_a_tick_of_the_timer_and_a_click_look_again(runs):
    monitor = RunMonitor(runs)
    write_run(runs, "c", "done", seconds=1.0)
    assert "1 waiting" in monitor.table.value
    monitor.timer.value += 1
    assert "2 done" in monitor.table.value
    write_run(runs, "d", "skipped")
    [button] = [child for child in monitor.children[1].children if child is not monitor.timer]
    button.click()
    assert "4 runs: 2 done, 1 failed, 1 skipped" in monitor.table.value
    assert (monitor.timer.interval, monitor.timer.repeat) == (2000, True)


def test_a_run_that_lasts_shows_its_seconds_so_far(runs):
    started = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    run_dir = write_run(runs, "d", "running", started=started.isoformat())
    with run_lock(run_dir):
        table = progress_table(read_statuses(runs), now=started + timedelta(seconds=90))
    assert table.set_index("run").loc["d", ["state", "seconds"]].tolist() == ["running", 90.0]
    ended = progress_table(read_statuses(runs), now=started)  # its lock is free, so nothing runs
    assert ended.set_index("run").loc["d", "state"] == "interrupted"


def test_the_figure_shows_the_mean_accuracy_of_done_runs(runs):
    def value(ratio, method, task, seed):
        return 0.9 - 0.5 * (ratio if ratio == ratio else 1) + 0.02 * seed - 0.1 * (task == "icons") + (method == "MLP")

    rows = result_rows(value)
    rows.to_parquet(runs / "a" / "rows.parquet")
    pd.concat([rows, rows.assign(experiment="other")]).to_parquet(runs / "b" / "rows.parquet")  # failed: not counted
    monitor = RunMonitor(runs)
    [line] = monitor.found.figure.data
    wanted = rows[(rows["method"] == "LP") & (rows["metric"] == "accuracy")]
    expected = [np.mean(wanted.loc[wanted["ratio"] == ratio, "value"]) for ratio in (0.0, 0.3)]
    assert list(line.x) == [0.0, 0.3]
    assert list(line.y) == pytest.approx(expected)
    assert list(line.text) == ["4 results"] * 2
    assert line.name == "supervised · ID"
    assert f"{expected[0]:.3f} → {expected[1]:.3f}" in monitor.found.title.value
    mean = wanted.loc[wanted["ratio"].notna(), "value"].mean()
    assert f"ID accuracy LP {mean:.3f}, MLP {mean + 1:.3f}" in monitor.table.value
    monitor.choose(method="MLP")
    assert list(monitor.found.figure.data[0].y) == pytest.approx([one + 1 for one in expected])
    monitor.choose(method="NMTune")
    assert monitor.found.title.value.split("<")[1].split(">")[1] == "No accuracy of NMTune found yet"
    assert len(monitor.found.figure.data) == 0


def test_each_result_counts_once_however_many_runs_wrote_it(runs):
    result_rows().to_parquet(runs / "a" / "rows.parquet")
    other = write_run(runs, "again", "done")
    result_rows(experiment="other", version="2").to_parquet(other / "rows.parquet")
    found = result_accuracies(read_statuses(runs))
    assert len(found) == 3 * 2 * 2 * 2
    result_rows(profile="demo").to_parquet(other / "rows.parquet")
    os.utime(other / "rows.parquet", ns=(1, 1))
    lines = accuracy_lines(result_accuracies(read_statuses(runs)), "LP")
    assert lines["line"].unique().tolist() == ["demo · supervised · ID", "smoke · supervised · ID"]


def test_other_tables_and_broken_files_are_passed_over(runs):
    pd.DataFrame({"requested": [0.1]}).to_parquet(runs / "a" / "rows.parquet")
    broken = write_run(runs, "d", "done")
    (broken / "rows.parquet").write_bytes(b"PAR1 cut short")
    few = write_run(runs, "e", "done")
    result_rows(fraction=0.1).to_parquet(few / "rows.parquet")
    monitor = RunMonitor(runs)
    assert len(monitor.found.figure.data) == 0
    assert set(monitor._progress["result"]) == {""}


def test_the_view_is_set_as_it_is_read(runs):
    monitor = RunMonitor(runs)
    saved = {"state": "done", "order": "slowest first", "method": "NMTune"}
    monitor.view = saved
    assert monitor.view == saved


@pytest.mark.parametrize("choice", [{"state": "asleep"}, {"order": "random"}, {"method": "ridge"}])
def test_a_choice_that_is_not_offered_is_an_error(runs, choice):
    monitor = RunMonitor(runs)
    before = monitor.view
    with pytest.raises(InvalidInputError, match=f"Expected {next(iter(choice))}"):
        monitor.choose(**choice)
    assert monitor.view == before
    with pytest.raises(UnknownNameError, match="states"):
        monitor.choose(states="done")


def test_static_has_a_bar_per_run_by_state(runs):
    write_run(runs, "d", "done", seconds=2.0)
    figure = RunMonitor(runs).static()
    assert isinstance(figure, go.Figure)
    assert not isinstance(figure, go.FigureWidget)
    bars = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    assert bars == {"done": {"a": 12.5, "d": 2.0}, "failed": {"b": 40.0}, "waiting": {"c": 0.0}}
    assert figure.layout.title.text == "4 runs: 2 done, 1 failed, 1 waiting; longest: b, 40.0 s"
    planned, slowest = figure.layout.updatemenus[0].buttons
    assert list(figure.layout.yaxis.categoryarray) == ["d", "c", "b", "a"]  # from the bottom up
    assert planned.args == ({}, {"yaxis.categoryorder": "array"})
    assert slowest.args == ({}, {"yaxis.categoryorder": "total ascending"})


def test_texts_from_runs_are_shown_as_text(tmp_path):
    run_dir = write_run(tmp_path, "a", "done", error=EVIL, seconds=1.0)
    result_rows(methods=["LP", EVIL], objective=EVIL).to_parquet(run_dir / "rows.parquet")
    monitor = RunMonitor(tmp_path)
    assert "<img" not in monitor.table.value
    assert "&lt;img src=x onerror=alert(1)&gt; 0.500" in monitor.table.value
    assert "<img" not in str(monitor.found.figure.to_dict()) + monitor.found.title.value
    assert "&lt;img" in monitor.found.figure.data[0].name
    bars = progress_bars(pd.DataFrame({"run": [EVIL], "state": ["done"], "seconds": [1.0]}), title=EVIL)
    assert "<img" not in str(bars.to_dict())


def test_without_runs_it_waits_and_without_a_directory_it_refuses(tmp_path):
    monitor = RunMonitor(tmp_path)
    assert "No runs yet" in monitor.table.value
    with pytest.raises(InvalidInputError, match="at least one row"):
        monitor.static()
    write_run(tmp_path, "a", "waiting")
    monitor.refresh()
    assert "1 run: 1 waiting" in monitor.table.value
    with pytest.raises(InvalidInputError, match="there is none at"):
        RunMonitor(tmp_path / "nowhere")


def test_figures_refuse_tables_without_their_columns():
    with pytest.raises(InvalidInputError, match="missing: seconds"):
        progress_bars(pd.DataFrame({"run": ["a"], "state": ["done"]}), title="")
    with pytest.raises(InvalidInputError, match="missing: n"):
        found_lines(pd.DataFrame({"line": ["a"], "ratio": [0.1], "accuracy": [0.5]}), title="")
