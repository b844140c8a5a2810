"""The examples in the docstrings of public objects, and of the modules below, are right."""

import doctest
import importlib
import pathlib

import numpy as np
import pytest
import tf_keras as keras

import kquant
import tflite_export
from kquant.graph.kinds.table import LAYERS
from tests.public import public_objects
from tflite_export.lowering.lower import LOWERINGS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("kquant/ranges", "kquant/quantizers", "kquant/qat")
MODULES = ["kquant.core.numerics", "kquant.core.nested_codes", "kquant.core.data", "kquant.core.images",
           "kquant.core.metrics", "kquant.analysis.noise", *sorted(
    f"{package}/{path.stem}".replace("/", ".") for package in PACKAGES
    for path in (ROOT / package).glob("*.py") if path.stem != "__init__")]
NAMES = {"kq": kquant, "tflite_export": tflite_export, "keras": keras, "np": np}
"""What an example may use without an import."""
FEWEST_EXAMPLES = 25
WITHOUT_EXAMPLE = {
    "kquant.UnsupportedLayerError", "tflite_export.Exported", "tflite_export.ExportedFamily",
    "tflite_export.IntOp",
    "tflite_export.Verification", "tflite_export.VerificationError"}
"""Public objects whose docstring needs no example."""


def examples_of(value, name):
  """The docstrings with examples of an object."""
  return [test for test in doctest.DocTestFinder().find(value, name, extraglobs=NAMES) if test.examples]


def module_tests(name):
  """The docstrings with examples of a module, but those of public objects, which are run by themselves."""
  public = {f"{name}.{value.__name__}" for value in public_objects().values()}
  return [test for test in examples_of(importlib.import_module(name), name)
          if not any(test.name == own or test.name.startswith(f"{own}.") for own in public)]


def failures(tests):
  """How many of their examples fail; what is wrong is printed."""
  runner = doctest.DocTestRunner(verbose=False)
  for test in tests:
    runner.run(test)
  return runner.failures


@pytest.fixture(autouse=True)
def _as_before(tmp_path, monkeypatch):
  """Examples write into a folder of their own; layers that they register are forgotten."""
  monkeypatch.chdir(tmp_path)
  keras.utils.set_random_seed(0)
  kept = dict(LAYERS), dict(LOWERINGS)
  yield
  for table, before in zip((LAYERS, LOWERINGS), kept):
    table.clear()
    table.update(before)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
  assert failures(module_tests(name)) == 0


@pytest.mark.parametrize("name", sorted(public_objects()))
def test_examples_of_a_public_object(name):
  assert failures(examples_of(public_objects()[name], name)) == 0


def test_there_are_examples():
  found = sum(len(test.examples) for name in MODULES for test in module_tests(name))
  assert found >= FEWEST_EXAMPLES


def test_public_objects_have_examples():
  without = {name for name, value in public_objects().items() if not examples_of(value, name)}
  assert without == WITHOUT_EXAMPLE


def test_a_wrong_example_is_found():
  wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
  assert failures([wrong]) == 1
