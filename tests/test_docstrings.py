"""Every example in a docstring runs and gives what it shows."""

import doctest
import importlib
import pkgutil
from inspect import isfunction

import pytest

import nml_kit

MODULES = [module.name for module in pkgutil.walk_packages(nml_kit.__path__, "nml_kit.") if not module.ispkg]
OPTIONS = doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS, report=True)
    assert failures == 0


def test_every_public_function_and_estimator_has_an_example():
    public = {name: getattr(nml_kit, name) for name in nml_kit.__all__}
    used = {name: value for name, value in public.items() if isfunction(value) or hasattr(value, "fit")}
    finder = doctest.DocTestFinder()
    without = [
        name for name, value in used.items() if not any(test.examples for test in finder.find(value, name, globs={}))
    ]
    assert len(used) > 10
    assert without == []
