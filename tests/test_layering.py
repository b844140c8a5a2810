"""Imports go down only: design of the house, checked on the source."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# What a package may import, beside itself.
_FLOORS = ("kquant.core", "kquant.graph", "kquant.rewrites", "kquant.ranges", "kquant.quantizers",
           "kquant.qmodel", "kquant.ptq", "kquant.qat", "kquant.anyprecision", "kquant.search",
           "kquant.analysis", "kquant.api", "kquant.doctor", "kquant.allocation")
_APART = ({"kquant.rewrites", "kquant.ranges", "kquant.quantizers"}, {"kquant.ptq", "kquant.qat"},
          {"kquant.qat", "kquant.search"}, {"kquant.qat", "kquant.analysis"}, {"kquant.qat", "kquant.api"})
"""Packages of one floor, which do not import each other."""


def _below(package: str) -> set[str]:
  lower = set(_FLOORS[:_FLOORS.index(package)])
  return lower - set().union(*(pair for pair in _APART if package in pair))


ALLOWED = {
    **{package: _below(package) for package in _FLOORS},
    "kquant.doctor": {"tflite_export", *_below("kquant.doctor")},  # what files cost, in doctor/files.py
    "kquant.allocation": {"tflite_export", *_below("kquant.allocation")},  # times operators, in latency.py
    "kquant.cli": {"kquant", "tflite_export", *_FLOORS},
    "tflite_export": {"kquant.core", "kquant.graph"},
    "kquant.registration": set(),  # imports by name what Keras asks for
    "kquant": {"kquant.registration"},
}


MOST_LINES = 320
"""Of a file; one that is longer is split along what it is made of."""


def package_of(module: str) -> str:
  parts = module.split(".")
  return module if len(parts) == 1 else ".".join(parts[:2]) if parts[0] == "kquant" else parts[0]


def imports_of(path: pathlib.Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found |= {f"{node.module}.{alias.name}" if node.module in ("kquant", "tflite_export") else node.module
                for alias in node.names}
  return {name for name in found if name.split(".")[0] in ("kquant", "tflite_export")}


SOURCES = sorted([*(ROOT / "kquant").rglob("*.py"), *(ROOT / "tflite_export").rglob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
  module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
  package = package_of(module)
  for name in imports_of(path):
    target = package_of(name)
    assert target == package or target in ALLOWED[package], f"{module} must not import {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
  assert len(path.read_text().splitlines()) <= MOST_LINES


def test_public_names_live_in_kquant_but_those_that_write_files():
  (homes,) = (node.value for node in ast.parse((ROOT / "kquant" / "__init__.py").read_text()).body
              if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES")
  outside = {name: home for name, home in ast.literal_eval(homes).items() if not home.startswith("kquant.")}
  assert outside == {"export": "tflite_export.exporter", "export_family": "tflite_export.family.exporter"}


def test_private_keras_attributes_live_where_keras_is_read_and_called():
  private = ("_nested_inputs", "_nested_outputs", "_keras_history", "_nodes_by_depth", "_is_graph_network",
             "_inbound_nodes", "_flatten_layers")
  for path in SOURCES:
    if path.name not in ("keras_calls.py", "keras_reader.py", "keras_tracing.py", "keras3.py"):  # of Keras 3
      assert not [name for name in private if f".{name}" in path.read_text()], path


@pytest.mark.parametrize("package, file", [("doctor", "files.py"), ("allocation", "latency.py")])
def test_one_file_measures_files(package, file):
  found = {path.name for path in (ROOT / "kquant" / package).glob("*.py")
           if any(name.startswith("tflite_export") for name in imports_of(path))}
  assert found == {file}
