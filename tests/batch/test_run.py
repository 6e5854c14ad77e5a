"""Real notebooks in real kernels; each start costs seconds, so one run serves several tests."""

import json
import os
import pickle
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nml_kit.batch import (
    RunStatus,
    look_ahead,
    plan_notebook,
    read_statuses,
    run_suite,
    suite_exit_code,
    write_status,
)
from nml_kit.batch.execution import execute_run
from nml_kit.batch.suites import checked
from nml_kit.errors import DataFileError, InvalidInputError, UnknownNameError
from nml_kit.study import profiles_dir

PARAMETERS = (
    'run_dir = ""\nrate = 0.5\nseeds = [0, 1]\ntask: str = "a=b"  # the default holds an equals sign\nquick = False'
)


def write_notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> Path:
    cells = [new_markdown_cell("# A question"), new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    notebook = new_notebook(cells=cells + [new_code_cell(source) for source in sources])
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def planned(notebook: Path, run_dir: Path, *, stage: int = 0, **params) -> RunStatus:
    place = {"name": run_dir.name, "notebook": notebook, "run_dir": run_dir}
    return RunStatus(state="waiting", stage=stage, params=params, **place)


def run_notebook(notebook: Path, run_dir: Path, *, timeout: float | None = None, **params) -> RunStatus:
    return execute_run(planned(notebook, run_dir, **params), force=True, timeout=timeout)


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    """A run in a hostile environment: another Python's kernel is named python3, and the first kernel start fails."""
    root = tmp_path_factory.mktemp("good {braces}")
    other = root / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(
        "import pathlib, os, sys\n"
        "mark = pathlib.Path(__file__).with_name('died-once')\n"
        "if 'ipykernel_launcher' in sys.orig_argv and not mark.exists():\n"
        "    mark.touch(); os._exit(1)\n"
    )
    notebook = write_notebook(
        root / "notebooks" / "good.ipynb",
        "import json, os, pathlib, sys\n"
        "facts = {'python': sys.executable, 'cwd': os.getcwd(), 'rate': rate, 'task': task, 'seeds': seeds}\n"
        "(pathlib.Path(run_dir) / 'facts.json').write_text(json.dumps(facts))",
        "import plotly.graph_objects as go\ngo.Figure(go.Scatter(y=[1, 2]), layout_title_text='Finding')",
    )
    run_dir = root / "runs" / "good"
    run_dir.mkdir(parents=True)
    (run_dir / "rows.parquet").write_bytes(b"of an earlier run")
    earlier = RunStatus(name="good", notebook=notebook, run_dir=run_dir, state="failed", files={"rows.parquet": 17})
    write_status(earlier)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        patch.setenv("PYTHONPATH", str(root / "site"))
        result = run_notebook(notebook, run_dir, rate="1e-3", seeds=[7])
    return root, run_dir, result


def test_a_run_leaves_notebook_page_and_status(good_run):
    _, run_dir, result = good_run
    assert (result.exit_code, result.state, result.error) == (0, "done", "")
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "facts.json", "notebook.html", "notebook.ipynb", "status.json",
    ]  # fmt: skip
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "done"
    assert status["params"] == {"rate": 0.001, "seeds": [7], "run_dir": str(run_dir)}
    assert max(run_dir.iterdir(), key=lambda path: path.stat().st_mtime_ns).name == "status.json"


def test_the_kernel_is_this_python_in_the_run_directory(good_run):
    _, run_dir, _ = good_run
    facts = json.loads((run_dir / "facts.json").read_text())
    assert facts == {"python": sys.executable, "cwd": str(run_dir), "rate": 0.001, "task": "a=b", "seeds": [7]}


def test_a_kernel_that_does_not_start_is_started_again(good_run):
    root, _, result = good_run
    assert (root / "site" / "died-once").exists()
    assert result.exit_code == 0


def test_figures_are_stored_as_data_and_shown_in_the_page(good_run):
    _, run_dir, _ = good_run
    outputs = nbformat.read(run_dir / "notebook.ipynb", as_version=4).cells[-1].outputs
    assert "application/vnd.plotly.v1+json" in outputs[0].data
    assert (run_dir / "notebook.ipynb").stat().st_size < 100_000
    assert "Plotly.newPlot" in (run_dir / "notebook.html").read_text()


FLOOD = (
    "for _ in range(300_000): print('x' * 9)\nimport sys; _ = sys.stdout.write('y' * 7_000_000)",
    "'z' * 3_000_000",
    "for i in range(3000): print('\\r' + 'b' * 1000, end='', flush=True, file=sys.stderr)\n"
    "print('\\rlast', file=sys.stderr)",
    "for i in range(3000): print(i, flush=True)",
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Runs of three stages that end in all ways, two at a time: their statuses by name, and the lines of progress."""
    root = tmp_path_factory.mktemp("outcomes")
    wait = "import pathlib, time\nend = time.monotonic() + 60\nroot = pathlib.Path(run_dir).parent\n"
    for own, other in (("a", "b"), ("b", "a")):
        code = f"(root / '{own}.txt').touch()\nwhile not (root / '{other}.txt').exists(): assert time.monotonic() < end"
        write_notebook(root / f"{own}.ipynb", wait + code)
    write_notebook(root / "second.ipynb", wait + "assert (root / 'a' / 'status.json').exists()")
    write_notebook(root / "bad.ipynb", "x = 1", "1 / 0")
    write_notebook(root / "dies.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    write_notebook(root / "flood.ipynb", *FLOOD)
    write_notebook(root / "later.ipynb")
    stages = {"a": 0, "b": 0, "second": 1, "bad": 1, "dies": 1, "flood": 1, "later": 2}
    plan = [planned(root / f"{name}.ipynb", root / "runs" / name, stage=stage) for name, stage in stages.items()]
    lines = []
    results = run_suite(plan, jobs=2, report=lines.append)
    return {result.name: result for result in results}, lines, plan


def test_notebooks_of_a_stage_run_side_by_side_and_stages_one_after_the_other(outcomes):
    """Each of the first stage waits for the other's file; the second stage needs what the first one left."""
    results, lines, plan = outcomes
    assert list(results) == ["a", "b", "second", "bad", "dies", "flood", "later"]
    assert [results[name].state for name in ("a", "b", "second")] == ["done"] * 3
    assert sorted(line.split(" after")[0] for line in lines[:4]) == ["a done", "a started", "b done", "b started"]
    assert suite_exit_code(list(results.values())) == 3
    with pytest.raises(InvalidInputError, match="Expected jobs of at least 1, got 0"):
        run_suite(plan, jobs=0)


def test_a_failing_run_names_its_cell_and_does_not_stop_the_others(outcomes):
    bad = outcomes[0]["bad"]
    assert (bad.exit_code, bad.cell) == (1, 4)
    assert bad.error == "cell 4: ZeroDivisionError: division by zero"
    assert json.loads((bad.run_dir / "status.json").read_text())["state"] == "failed"
    assert "ZeroDivisionError" in (bad.run_dir / "notebook.ipynb").read_text()
    assert not (bad.run_dir / "notebook.html").exists()


def test_later_stages_wait_for_earlier_ones_unless_told_to_keep_going(outcomes):
    results, _, plan = outcomes
    later = results["later"]
    assert (later.state, later.exit_code) == ("skipped", 3)
    assert later.error == "not started: bad, dies did not end well"
    assert not later.run_dir.exists()
    assert {one.name: one.state for one in read_statuses(later.run_dir.parent)}["later"] == "waiting"
    again = [run for run in plan if run.name in ("bad", "later")]
    assert [one.state for one in run_suite(again, keep_going=True)] == ["failed", "done"]


def test_a_dead_kernel_is_told_apart(outcomes):
    dead = outcomes[0]["dies"]
    assert (dead.exit_code, dead.state) == (138, "kernel died")
    assert dead.error == f"cell 3: the kernel died (out of memory, or killed); see {dead.run_dir / 'kernel.log'}"
    assert (dead.run_dir / "kernel.log").exists()
    assert json.loads((dead.run_dir / "status.json").read_text())["exit_code"] == 138


def test_what_a_cell_prints_is_cut_and_counted(outcomes):
    """A flood in small pieces, one line without an end, a long result; progress bars do not use up the room."""
    result = outcomes[0]["flood"]
    assert (result.state, result.error) == ("done", "")
    flood, text, bars, pieces = nbformat.read(result.run_dir / "notebook.ipynb", as_version=4).cells[-4:]
    head, _, notes = flood.outputs[0].text.partition("\n…")
    assert head == ("x" * 9 + "\n") * 100_000
    assert "9,000,000 characters were cut" in notes
    assert len(text.outputs[0].data["text/plain"]) < 1_000_100
    assert bars.outputs[0].text == "last\n"
    assert pieces.outputs[0].text.split() == list(map(str, range(3000)))
    assert all((result.run_dir / f"notebook.{kind}").stat().st_size < 3_500_000 for kind in ("ipynb", "html"))


def actions(plan: list[RunStatus], **options) -> dict[str, str]:
    return {row.run.name: row.action for row in look_ahead(plan, **options)}


def test_a_grid_resumes_with_what_is_not_done(tmp_path):
    """Each execution leaves a line; the run with seed 1 fails until a file is there."""
    code = (
        "import pathlib\nroot = pathlib.Path(run_dir).parents[3]\n"
        "with (root / 'log').open('a') as log: log.write(f'{seed}\\n')\n"
    )
    parameters = 'profile = "smoke"\nseed = 7\nrun_dir = ""'
    notebook = tmp_path / "n.ipynb"
    write_notebook(notebook, code + "assert seed == 0 or (root / 'ready').exists()", parameters=parameters)

    def plan(**options):
        return plan_notebook(notebook, runs=tmp_path / "runs", grid={"seed": [0, 1]}, **options)

    assert actions(plan()) == {"n/seed=0": "run", "n/seed=1": "run"}
    assert [status.state for status in run_suite(plan())] == ["done", "failed"]
    assert actions(plan()) == {"n/seed=0": "hit", "n/seed=1": "retry"}
    assert {row.run.name: row.seconds for row in look_ahead(plan())}["n/seed=1"] > 0
    (tmp_path / "ready").touch()
    results = run_suite(plan())
    assert [(status.name, status.state) for status in results] == [("n/seed=0", "hit"), ("n/seed=1", "done")]
    assert [status.state for status in run_suite(plan())] == ["hit", "hit"]
    assert (tmp_path / "log").read_text() == "0\n1\n1\n"

    assert actions(plan(), force=True) == {"n/seed=0": "run", "n/seed=1": "run"}
    assert actions(plan(), only="*seed=1") == {"n/seed=1": "hit"}
    assert actions(plan(), only="n") == actions(plan())
    with pytest.raises(InvalidInputError, match=r"got 'x\*'\. Runs: n/seed=0, n/seed=1"):
        look_ahead(plan(), only="x*")
    own = tmp_path / "smoke.yaml"
    own.write_text((profiles_dir() / "smoke.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    moved = [run.model_copy(update={"params": {"profile": str(own), **run.params}}) for run in plan()]
    assert set(actions(moved).values()) == {"hit"}  # the same content elsewhere
    own.write_text(own.read_text().replace("head_epochs: 2", "head_epochs: 77"))
    assert set(actions(moved).values()) == {"run"}
    (tmp_path / "runs" / "smoke" / "n" / "seed=0" / "notebook.html").unlink()
    assert actions(plan()) == {"n/seed=0": "run", "n/seed=1": "hit"}
    write_notebook(notebook, code, parameters=parameters)
    assert actions(plan()) == {"n/seed=0": "run", "n/seed=1": "run"}
    assert {one.state for one in read_statuses(tmp_path)} == {"done"}


def test_a_run_and_its_execution_travel_to_another_process():
    run = planned(Path("n.ipynb"), Path("runs/demo/n/seed=1"), stage=1, seed=1)
    execute, arrived = pickle.loads(pickle.dumps((execute_run, run)))  # noqa: S301 (our own)
    assert execute is execute_run
    assert arrived == run


def test_two_runs_cannot_share_a_directory(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb")
    plan = [planned(notebook, tmp_path / "run", rate=rate) for rate in (0.1, 0.2)]
    with pytest.raises(InvalidInputError, match="got two runs in one"):
        run_suite(plan)


def test_a_run_that_hangs_is_ended_in_time(tmp_path):
    hang = (
        "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "open('pid', 'w').write(str(os.getpid()))"
    )
    notebook = write_notebook(tmp_path / "hangs.ipynb", hang, "while True: time.sleep(1)")
    result = run_notebook(notebook, run_dir=tmp_path / "run", timeout=6)
    assert (result.state, result.exit_code, result.cell) == ("timed out", 1, 4)
    assert result.error == "cell 4: not finished within 6 s"
    assert result.seconds < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run" / "pid").read_text()), 0)
    for timeout in (0, -1, float("nan")):
        with pytest.raises(InvalidInputError, match="Expected a timeout above 0 seconds"):
            run_suite([], timeout=timeout)


def test_all_runs_are_checked_before_the_first_starts(tmp_path):
    fine = write_notebook(tmp_path / "fine.ipynb", "open('ran.txt', 'w').close()")
    plan = [
        planned(fine, tmp_path / "runs" / "one"),
        planned(fine, tmp_path / "runs" / "two", rte=0.1),
    ]
    with pytest.raises(UnknownNameError, match="Unknown parameter 'rte': did you mean 'rate'"):
        run_suite(plan)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_profile_is_refused_before_a_kernel_starts(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", parameters='profile = "demo"')
    with pytest.raises(UnknownNameError, match="Unknown profile 'dmeo': did you mean 'demo'"):
        run_notebook(notebook, profile="dmeo", run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_profile_may_be_a_file_named_from_where_the_user_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = profiles_dir() / "smoke.yaml"
    Path("own.yaml").write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8")
    notebook = write_notebook(tmp_path / "n.ipynb", parameters='profile = "demo"')
    (plan,) = plan_notebook(notebook, runs="runs", profile="own.yaml")
    assert plan.run_dir == Path("runs/own/n")
    [waiting] = checked([plan])
    assert waiting.params == {"profile": str(tmp_path / "own.yaml")}


def test_a_profile_needs_a_notebook_that_takes_one(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb")
    with pytest.raises(UnknownNameError, match="Unknown parameter 'profile'"):
        run_notebook(notebook, profile="demo", run_dir=tmp_path / "run")


def test_a_directory_with_a_notebook_of_ones_own_is_left_alone(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb")
    own = write_notebook(tmp_path / "thesis" / "notebook.ipynb", "x = 1")
    (tmp_path / "thesis" / "data.parquet").touch()
    before = own.read_bytes()
    with pytest.raises(InvalidInputError, match=r"Expected a directory of a run, got .*thesis with a notebook\.ipynb"):
        run_notebook(notebook, tmp_path / "thesis")
    assert own.read_bytes() == before
    assert (tmp_path / "thesis" / "data.parquet").exists()


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataFileError, match=r"Expected a Jupyter notebook at .*none\.ipynb"):
        run_notebook(tmp_path / "none.ipynb", run_dir=tmp_path / "run")


def result(state: str) -> RunStatus:
    return RunStatus(name="n", notebook=Path("n.ipynb"), run_dir=Path("run"), state=state)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["done", "hit"], 0),
        (["failed"], 1),
        (["timed out"], 1),
        (["kernel died"], 138),
        (["interrupted"], 130),
        (["done", "failed", "done"], 3),
        (["kernel died", "kernel died"], 3),
        (["failed", "skipped"], 3),
        (["done", "interrupted"], 130),
        (["interrupted", "failed"], 130),
    ],
)
def test_exit_codes(states, expected):
    assert suite_exit_code([result(state) for state in states]) == expected
