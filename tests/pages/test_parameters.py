"""The parameters cell, read as text and never run."""

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook

from nml_kit.errors import DataFileError, InvalidInputError, UnknownNameError
from nml_kit.pages import check_parameters, notebook_choices, notebook_fractions, notebook_parameters, read_source
from nml_kit.study import notebooks_dir


def test_the_parameters_cell_is_read_without_running_it():
    source = 'text = "a=b"\nnumbers = [\n    1,  # one\n    2,\n]\nratio: float = 0.1\nnothing = None\nshift = -3'
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    expected = {"text": "a=b", "numbers": [1, 2], "ratio": 0.1, "nothing": None, "shift": -3}
    assert notebook_parameters(new_notebook(cells=[cell])) == expected
    assert notebook_parameters(new_notebook(cells=[new_code_cell("x = 1")])) == {}


@pytest.mark.parametrize("source", ["x = open('secret')", "import os", "x, y = 1, 2", "x = ("])
def test_a_parameters_cell_holds_only_literals(source):
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    with pytest.raises(InvalidInputError, match="Expected lines `name = literal` in the parameters cell"):
        notebook_parameters(new_notebook(cells=[cell]))


DEFAULTS = {"rate": 0.5, "n": 3, "task": "icons", "quick": False, "seeds": [0], "grid": {"a": 1}, "any": None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rate", float("nan"), "plain JSON value"),
        ("rate", np.float64(0.1) * np.ones(2), "plain JSON value"),
        ("n", np.int64(3), r"plain JSON value .*convert it, as with `\.item\(\)`"),
        ("any", {1, 2}, "plain JSON value"),
        ("any", {1: 2}, "expected text as keys"),
        ("n", True, "expected int, as in its default 3, got True"),
        ("n", 2.5, "expected int"),
        ("rate", "fast", "expected float, as in its default 0.5, got 'fast'"),
        ("rate", True, "expected float"),
        ("rate", "inf", "expected float"),
        ("quick", 1, "expected bool"),
        ("task", 3, "expected str"),
        ("seeds", 3, "expected list"),
    ],
)
def test_wrong_values_are_refused(name, value, message):
    with pytest.raises(InvalidInputError, match=message):
        check_parameters({name: value}, DEFAULTS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(value=json_values)
def test_plain_values_pass_unchanged_where_any_type_is_meant(value):
    assert check_parameters({"any": value}, DEFAULTS) == {"any": value}


@given(value=json_values)
def test_a_value_is_accepted_with_the_type_of_its_default_or_refused_with_a_message(value):
    for name, default in DEFAULTS.items():
        try:
            checked = check_parameters({name: value}, DEFAULTS)[name]
        except InvalidInputError as error:
            message = str(error)
            if not message.startswith(f"Parameter {name!r}: expected"):
                raise
        else:
            assert default is None or type(checked) is type(default)


CHOICES = """
method: str = "LP"  # one of LP, MLP; the head
task: str = "icons"  # its name, one of those in the profile
rate: float = 0.1
"""


def test_a_comment_lists_the_choices():
    notebook = new_notebook(cells=[new_code_cell(CHOICES, metadata={"tags": ["parameters"]})])
    defaults, choices = notebook_parameters(notebook), notebook_choices(notebook)
    assert defaults == {"method": "LP", "task": "icons", "rate": 0.1}
    assert choices == {"method": ("LP", "MLP")}
    assert check_parameters({"method": "MLP", "rate": 5}, defaults, choices) == {"method": "MLP", "rate": 5}
    with pytest.raises(UnknownNameError, match="Unknown value of parameter 'method': 'MPL': did you mean 'MLP'"):
        check_parameters({"method": "MPL"}, defaults, choices)


SHARES = """
ratio: float = 0.1
fractions: list[float] = []
noise = [0.0]  # share of labels that are flipped
level = 0.95  # probability from which it counts
kind: str = "uniform"  # one of uniform, ratio
rate = 3.0
"""


def test_numbers_whose_name_or_comment_says_so_are_fractions():
    notebook = new_notebook(cells=[new_code_cell(SHARES, metadata={"tags": ["parameters"]})])
    defaults, fractions = notebook_parameters(notebook), notebook_fractions(notebook)
    assert fractions == {"ratio", "fractions", "noise", "level"}
    fine = {"ratio": 1, "fractions": [0, 0.5, 1], "noise": [], "level": 0.0, "rate": 30.0, "kind": "x"}
    assert check_parameters(fine, defaults, fractions=fractions) == fine
    for name, value in (
        ("ratio", 30),
        ("level", 1.0001),
        ("noise", [0.1, -0.1]),
        ("fractions", ["a"]),
        ("noise", [True]),
    ):
        with pytest.raises(InvalidInputError, match=f"Parameter {name!r}: expected a fraction from 0 to 1, got"):
            check_parameters({name: value}, defaults, fractions=fractions)


@pytest.mark.parametrize(
    ("notebook", "expected"),
    [
        ("00_start_here", {"ratio", "ratios"}),
        ("02_transfer", {"ratios", "fractions", "level"}),
        ("04_nmtune", {"ratios", "extremes"}),
        ("05_pretraining", {"ratios", "extremes"}),
        ("09_noisy_downstream_labels", {"ratios", "downstream_noise"}),
        ("13_real_models", set()),
        ("audit", set()),
    ],
)
def test_the_fractions_of_the_notebooks_are_known(notebook, expected):
    assert notebook_fractions(read_source(notebooks_dir() / f"{notebook}.ipynb")) == expected


def test_the_light_reader_sees_the_cells_that_nbformat_wrote(tmp_path):
    cells = [new_code_cell("rate = 1.0\n# two lines", metadata={"tags": ["parameters"]}), new_code_cell("x = 1")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "n.ipynb")
    read = read_source(tmp_path / "n.ipynb")
    assert [cell["source"] for cell in read["cells"]] == [cell.source for cell in cells]
    assert notebook_parameters(read) == {"rate": 1.0}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nbformat": 3, "cells": []}', '{"nbformat": 4, "cells": [1]}'])
def test_what_is_no_notebook_is_refused(tmp_path, text):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(DataFileError, match=r"Expected a Jupyter notebook at .*n\.ipynb"):
        read_source(tmp_path / "n.ipynb")
