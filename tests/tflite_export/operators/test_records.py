"""An operator is known in one place: library files that name it are counted; the proof asks no record."""

import ast
import dataclasses
import pathlib

import pytest
from ai_edge_litert import schema_py_generated as schema

from tflite_export.file import layout
from tflite_export.operators import table
from tflite_export.operators.record import Operator
from tflite_export.operators.table import OPERATORS, operator_of

ROOT = pathlib.Path(__file__).parents[3]
FILES = sorted(path for root in ("kquant", "tflite_export") for path in (ROOT / root).rglob("*.py")
               if "readers" not in path.parts)  # they name the operators of float files
RECORDS, LAYOUT = "tflite_export/operators", "tflite_export/file/layout.py"

# Files that name an operator beside its record, its lowering and the layout, and why.
FUSED = {"tflite_export/lowering/builder.py", "tflite_export/program/program.py"}  # as an activation
BESIDE = {
    "RELU": {*FUSED, "kquant/cli/native_messages.py"},  # a float file that makes the runtime print
    "RELU6": FUSED,
    "TANH": {"tflite_export/program/program.py"},  # inside of a recurrent operator
    "SOFTMAX": {"kquant/cli/evaluation.py"},  # predictions are compared before the last one
}


def strings(path):
  return {leaf.value for leaf in ast.walk(ast.parse(path.read_text()))
          if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}


@pytest.fixture(scope="module")
def naming():
  """{kind: the library files that name it}."""
  found = {kind: set() for kind in OPERATORS}
  for path in FILES:
    for kind in strings(path) & set(OPERATORS):
      found[kind].add(path.relative_to(ROOT).as_posix())
  return found


def test_an_operator_is_named_in_its_record_its_lowering_and_the_layout_at_most(naming):
  for kind, files in naming.items():
    rest = files - BESIDE.get(kind, set())
    records = {file for file in rest if file.startswith(RECORDS)}
    assert len(records) == 1, (kind, records)
    lowerings = {file for file in rest - records if file.startswith("tflite_export/lowering/")}
    assert rest <= {*records, *lowerings, LAYOUT}, kind
    assert len(rest) <= 3, (kind, rest)


def test_every_exception_is_one(naming):
  assert all(files <= naming[kind] for kind, files in BESIDE.items())


def test_records_are_of_builtins_and_name_tables_that_the_schema_has():
  for kind, record in OPERATORS.items():
    assert hasattr(schema.BuiltinOperator, kind) and record.kind == kind
    assert record.options is None or hasattr(schema.BuiltinOptions, record.options), kind


def test_the_families_share_no_operator():
  families = [module.OPERATORS for module in table._FAMILIES]
  assert sum(map(len, families)) == len(OPERATORS)


def test_the_reader_knows_the_options_that_the_writer_writes():
  for kind, (accessor, _) in layout.OPTIONS.items():
    assert accessor.__name__ == OPERATORS[kind].options


def test_an_unknown_operator_has_no_rule():
  assert operator_of("CEIL") == Operator("CEIL")


def test_versions_over_int16_are_the_later_ones():
  record = dataclasses.replace(Operator("CEIL"), version=3, int16=4)
  assert record.version_over({"int8", "int32"}) == 3
  assert record.version_over({"int16", "int32"}) == 4
  assert record.version_over({"int8"}, 6) == record.version_over({"int16"}, 6) == 6
  assert dataclasses.replace(record, int16=None).version_over({"int16"}) == 3


# --- the wall --------------------------------------------------------------------------------------


def imports(module):
  """Modules of tflite_export that one of them imports, anywhere in its source."""
  path = ROOT / (module.replace(".", "/") + ".py")
  if not path.exists():
    path = ROOT / module.replace(".", "/") / "__init__.py"
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
  return {name for name in found if name.startswith("tflite_export.") and (
      (ROOT / (name.replace(".", "/") + ".py")).exists() or (ROOT / name.replace(".", "/")).is_dir())}


def reached(module, *, past=()):
  """Modules that an import of `module` brings along, not looking into those of `past`."""
  seen, todo = set(), [module]
  while todo:
    new = imports(todo.pop()) - seen
    seen |= new
    todo += new - set(past)
  return seen


WRITTEN_BY = ("tflite_export.file.writer", "tflite_export.operators", "tflite_export.kernels",
              "tflite_export.lowering")


@pytest.mark.parametrize("module", ["reader", "layout"])
def test_the_reader_shares_no_code_with_the_writer_and_asks_no_record(module):
  assert not [name for name in reached(f"tflite_export.file.{module}") if name.startswith(WRITTEN_BY)]


def test_the_verifier_asks_no_record_and_writes_probes_alone():
  """It takes to_bytes from the writer, to run the file with more outputs; what it compares it reads."""
  writer = "tflite_export.file.writer"
  found = reached("tflite_export.proof.verifier", past=[writer])
  assert {name for name in found if name.startswith(WRITTEN_BY)} == {writer}
  tree = ast.parse((ROOT / "tflite_export/proof/watch.py").read_text())
  names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == writer
           for alias in node.names}
  assert names == {"to_bytes"}


def test_the_wall_is_looked_for_in_modules_that_have_none():
  found = reached("tflite_export.file.writer")
  assert {"tflite_export.operators.table", "tflite_export.kernels.linear"} <= found


def test_arithmetic_and_records_import_nothing_of_what_is_built_on_them():
  above = ("tflite_export.file", "tflite_export.lowering", "tflite_export.proof")
  for path in (*(ROOT / "tflite_export/kernels").glob("*.py"), *(ROOT / RECORDS).glob("*.py")):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert not [name for name in reached(module) if name.startswith(above)], module
