"""The examples in the docstrings of public objects, and of the modules below, are right."""

import doctest
import importlib
import pathlib

import pytest

import kquant

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("kquant/ranges", "kquant/quantizers", "kquant/qat")
MODULES = ["kquant.core.numerics", "kquant.core.data", "kquant.core.images", "kquant.core.metrics", *sorted(
    f"{package}/{path.stem}".replace("/", ".") for package in PACKAGES
    for path in (ROOT / package).glob("*.py") if path.stem != "__init__")]
FEWEST_EXAMPLES = 25


def module_tests(name):
  """The docstrings with examples of a module."""
  return [test for test in doctest.DocTestFinder().find(
      importlib.import_module(name), extraglobs={"kq": kquant}) if test.examples]


def public_tests():
  """The docstrings with examples of the public objects."""
  objects = {name: getattr(kquant, name) for name in kquant.__all__ if name != "__version__"}
  return [test for name, value in objects.items()
          for test in doctest.DocTestFinder().find(value, name, extraglobs={"kq": kquant}) if test.examples]


def failures(tests):
  """How many of their examples fail; what is wrong is printed."""
  runner = doctest.DocTestRunner(verbose=False)
  for test in tests:
    runner.run(test)
  return runner.failures


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
  assert failures(module_tests(name)) == 0


def test_examples_of_public_objects():
  assert failures(public_tests()) == 0


def test_there_are_examples():
  found = sum(len(test.examples) for name in MODULES for test in module_tests(name))
  assert found >= FEWEST_EXAMPLES


def test_a_wrong_example_is_found():
  wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
  assert failures([wrong]) == 1
