"""The command, called as a user calls it; where a process matters (signals, imports), in its own process."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from typer.testing import CliRunner

from nml_kit import __version__
from nml_kit.batch.suites import checked
from nml_kit.cli import app, doctor
from nml_kit.store import Store, write_tensors
from nml_kit.study import notebooks_dir
from tests.batch.test_results import summary_frame
from tests.batch.test_run import write_notebook


def nml(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom nml_kit.cli.main import app\n"
        "out = CliRunner().invoke(app, ['--help']).output\n"
        "assert 'doctor' in out and 'summary' in out, out\n"
        "heavy = {'torch', 'pandas', 'numpy', 'plotly', 'papermill', 'sklearn', 'nbconvert', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert nml("--version").output == f"nml_kit {__version__}\n"


def test_a_suite_that_fails_in_part_says_where_and_how_to_continue(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = 'profile = "demo"\nrun_dir = ""'
    write_notebook(tmp_path / "bad.ipynb", "raise RuntimeError('no luck')", parameters=parameters)
    write_notebook(tmp_path / "fine.ipynb", "print(profile)", parameters=parameters)
    suite = "name: two\nprofile: smoke\nnotebooks:\n- notebook: bad.ipynb\n- notebook: fine.ipynb\n"
    (tmp_path / "two.yaml").write_text(suite)
    monkeypatch.setattr(sys, "argv", ["nml", "run", "two.yaml", "--force"])
    result = nml("run", "two.yaml")
    assert result.exit_code == 3
    assert "bad.ipynb, cell 3: RuntimeError: no luck" in result.stderr
    assert result.stderr.endswith("To continue (what is done is kept): nml run two.yaml\n")
    assert result.stdout.endswith("To see all runs on one page: nml report runs\n")
    assert "Traceback" not in result.output
    page = tmp_path / "runs" / "two" / "fine" / "notebook.html"
    assert f"done: {page}" in result.stdout
    assert json.loads(page.with_name("status.json").read_text())["params"]["profile"] == "smoke"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n.ipynb", "-p", "rte=0.1"], "Unknown parameter 'rte': did you mean 'rate'?"),
        (["n.ipynb", "-p", "rate"], "Expected -p KEY=VALUE, got 'rate'"),
        (["n.ipynb", "-p", "rate=fast"], "Parameter 'rate': expected float"),
        (["n.ipynb", "-p", "run_dir=here"], "expected no parameter 'run_dir', which nml sets for each run"),
        (["n.ipynb", "--profile", "smoke", "-p", "profile=demo"], "one profile, got 'smoke' and the parameter 'demo'."),
        (["n.ipynb", "-p", "rate=[1"], "Expected YAML in -p rate=VALUE"),
        (["n.ipynb", "-p", "rate=.nan"], "expected a plain JSON value"),
        (["n.ipynb", "-p", "task=2020-01-01"], "expected a plain JSON value"),
        (["s.yaml", "-p", "rate=0.1"], "Expected -p with a notebook"),
        (["s.yaml"], "Expected a suite"),
    ],
)
def test_bad_input_exits_2_with_a_message(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "n.ipynb")
    (tmp_path / "s.yaml").write_text("name: s\n")
    result = nml("run", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Expected --train FEATURES LABELS, or --backbone NAME with --data TASK."),
        (["--backbone", "compact-resnet"], "Expected --train FEATURES LABELS, or --backbone NAME with --data TASK."),
        (["--train", "none.npy", "y.npy"], "Expected an array in none.npy, got no such file; check the path."),
        (["--train", "X.npy", "y.npy"], "Expected one of train labels for each of 8 rows, got shape (9,)."),
        (["--train", "X.npy", "z.npy", "--held-out", "moon"], "Expected held-out domains among all, got 'moon'."),
        (
            ["--backbone", "compct-resnet", "--data", "digits"],
            "Unknown backbone 'compct-resnet': did you mean",
        ),
        (["--backbone", "compact-resnet", "--data", "dgits"], "Unknown data set 'dgits': did you mean 'digits'?"),
        (
            ["--backbone", "compact-resnet", "--data", "my/none"],
            "Expected a data set at {}/my/none, but",
        ),
        (
            ["--backbone", "compact-resnet", "--data", "digits", "--held-out", "mars"],
            "Expected held-out domains among scan, got 'mars'.",
        ),
    ],
)
def test_an_audit_of_bad_input_exits_2_before_anything_starts(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name, array in {"X": np.eye(8), "y": np.arange(9) % 2, "z": np.arange(8) % 2}.items():
        np.save(f"{name}.npy", array)
    result = nml("audit", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count(message.format(tmp_path)) == 1
    assert not (tmp_path / "runs").exists()


def test_an_audit_finds_its_data_from_where_the_user_stands(tmp_path, monkeypatch):
    from nml_kit.cli import main

    monkeypatch.chdir(tmp_path)
    rows = [f"text {number},{'ab'[number % 2]}" for number in range(8)]
    Path("my-texts.csv").write_text("\n".join(["text,label", *rows]))
    monkeypatch.setattr(main, "_run", lambda plan, **options: print(checked(plan)[0].params["data"]) or 0)
    result = nml("audit", "--backbone", "compact-resnet", "--data", "my-texts.csv")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'my-texts.csv'}\n")


def test_wrong_files_of_features_are_told_without_torch(tmp_path):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom nml_kit.cli.main import app\n"
        "result = CliRunner().invoke(app, ['audit', '--train', 'none.npy', 'y.npy'])\n"
        "print(result.exit_code, sorted({'torch', 'plotly', 'papermill', 'nbformat'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n"


@pytest.mark.parametrize(("name", "kind"), [("none.ipynb", "a Jupyter notebook"), ("none.yaml", "a YAML file")])
def test_a_missing_file_exits_2(tmp_path, name, kind):
    result = nml("run", tmp_path / name)
    message = f"Error: Expected {kind} at {tmp_path / name}, got no such file; check the path.\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_a_misspelt_grid_key_is_told_at_once(tmp_path):
    """Without nbformat and papermill, which take seconds to load."""
    write_notebook(tmp_path / "n.ipynb")
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom nml_kit.cli.main import app\n"
        f"result = CliRunner().invoke(app, ['run', {str(tmp_path / 'n.ipynb')!r}, '--grid', 'rte=0.1,0.2'])\n"
        "heavy = {'torch', 'pandas', 'plotly', 'papermill', 'nbclient', 'nbformat', 'nbconvert', 'jsonschema'}\n"
        "print(result.exit_code, sorted(heavy & set(sys.modules)), result.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 [] Error: Unknown parameter 'rte': did you mean 'rate'?")


@pytest.mark.parametrize(
    ("param", "got"), [("ratio=30", "30.0"), ("ratio=1.5", "1.5"), ("ratio=-0.1", "-0.1"), ("ratios=[0, 10]", "10")]
)
def test_a_ratio_in_percent_is_told_before_anything_starts(tmp_path, param, got):
    result = nml("run", notebooks_dir() / "01_noise.ipynb", "-p", param, "--runs", tmp_path, "--dry-run")
    name = param.partition("=")[0]
    message = f"Error: Parameter {name!r}: expected a fraction from 0 to 1, got {got}; 30 % is 0.3.\n"
    assert (result.exit_code, result.stderr) == (2, message)


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb")
    words = ["run", notebook, "--grid", "rate=0.1,0.2", "--grid", "seeds=[0],[1]", "--runs", tmp_path / "runs"]
    result = nml(*words, "--dry-run")
    assert result.exit_code == 0
    assert "n/rate=0.2,seeds=_1_-" in result.stdout
    assert "4 to run, unknown time" in result.stdout
    assert not (tmp_path / "runs").exists()
    missing = nml(*words, "--only", "m*")
    assert (missing.exit_code, "Runs: n/rate=0.1" in missing.stderr) == (2, True)
    none = nml(*words, "--dry-run", "--jobs", 0)
    assert (none.exit_code, "--jobs" in none.stderr) == (2, True)
    twice = nml("run", notebook, "--grid", "rate=0.1", "--grid", "rate=0.2")
    assert (twice.exit_code, "Expected --grid once for each parameter" in twice.stderr) == (2, True)


def test_no_runs_have_no_status(tmp_path):
    result = nml("status", tmp_path)
    assert (result.exit_code, "use `nml run` first" in result.stderr) == (2, True)


@pytest.fixture
def filled_store(tmp_path, monkeypatch):
    monkeypatch.setenv("NML_HOME", str(tmp_path / "store"))

    def build(work: Path) -> dict:
        write_tensors(work / "entry" / "tensors.safetensors", {"x": np.arange(3)})
        return {}

    return Store().get_or_build("features", {"of": "icons"}, build)


def test_the_store_is_listed_verified_and_pruned(filled_store):
    listing = nml("store", "list")
    assert listing.exit_code == 0
    assert filled_store.digest[:12] in listing.output
    assert "1 entries" in listing.output
    assert nml("store", "verify").output == "0 corrupt entries.\n"
    tensors = filled_store.path / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"!")
    corrupt = nml("store", "verify")
    assert corrupt.exit_code == 1
    assert "tensors.safetensors with sha256" in corrupt.stderr
    assert nml("store", "prune", "--corrupt").output.endswith("1 deleted.\n")
    assert not filled_store.path.exists()
    assert nml("store", "list").output.endswith("0 entries, 0.0 MB\n")


def test_copies_of_shards_are_listed_with_their_size(filled_store):
    copies = filled_store.path.parents[2] / "shards" / "0123456789abcdef"
    copies.mkdir(parents=True)
    for number in range(3):
        (copies / f"{number}.tar").write_bytes(bytes(500_000))
    told = nml("store", "list").output.splitlines()[-1]
    assert told == f"noisy copies of shards, 1.5 MB, which nothing prunes: {copies}"


def test_the_summary_is_a_table_with_the_pages_to_open(tmp_path):
    run_dir = tmp_path / "runs" / "demo" / "00"
    run_dir.mkdir(parents=True)
    summary_frame(0.5).to_parquet(run_dir / "summary.parquet")
    (run_dir / "notebook.html").touch()
    result = nml("summary", tmp_path / "runs")
    assert result.exit_code == 0
    assert "0.500 [0.490, 0.510]" in result.output
    assert f"Open {(run_dir / 'notebook.html').as_uri()}" in result.output.replace("\n", "")
    missing = nml("summary", tmp_path / "elsewhere")
    assert (missing.exit_code, "use `nml run` first" in missing.stderr) == (2, True)


def test_a_notebook_or_its_run_is_exported_as_one_page(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A question")])
    nbformat.write(notebook, tmp_path / "notebook.ipynb")
    for source, page in ((tmp_path, tmp_path / "notebook.html"), (tmp_path / "notebook.ipynb", tmp_path / "own.html")):
        options = [] if source == tmp_path else ["--out", page]
        result = nml("export", source, *options)
        assert result.exit_code == 0
        assert f"Open {page.as_uri()}" in result.output.replace("\n", "")
        assert "A question</h1>" in page.read_text(encoding="utf-8")
    missing = nml("export", tmp_path / "nothing.ipynb")
    assert (missing.exit_code, "Expected a Jupyter notebook at" in missing.stderr) == (2, True)


def test_doctor_looks_at_everything_and_says_what_to_do():
    checks = {check.name: check for check in doctor.run_checks()}
    assert list(checks) == ["packages", "torch threads", "store", "shipped data", "Chromium"]
    assert all(check.detail for check in checks.values())
    assert all(check.remedy for check in checks.values() if not check.ok)


def test_doctor_exits_1_if_something_required_is_missing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NML_HOME", str(tmp_path / "file" / "store"))
    monkeypatch.setenv("NML_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    checks = {check.name: check for check in doctor.run_checks()}
    assert "Set NML_HOME" in checks["store"].remedy
    assert not checks["store"].ok
    assert not checks["shipped data"].ok
    assert (checks["Chromium"].ok, checks["Chromium"].required) == (False, False)
    result = nml("doctor")
    assert result.exit_code == 1
    assert "MISSING" in result.output
    assert "optional" in result.output


def test_doctor_tells_an_old_package_and_a_missing_one():
    from packaging.requirements import Requirement

    assert doctor.package_problem(Requirement("numpy>=999")).endswith("is not >=999")
    assert doctor.package_problem(Requirement("no-such-package")) == "no-such-package is missing"
    assert doctor.package_problem(Requirement("numpy>=1.0")) == ""
