"""Programs as JSON: what is described is rebuilt field by field."""

import dataclasses
import json

from tflite_export.family.skeleton import Pool, describe, rebuild
from tflite_export.program.program import IntOp, IntProgram, IntTensor


def program() -> IntProgram:
  """Each field of a program, of an operator and of some tensor has another value than its default."""
  tensors = [IntTensor("x", (1, 4), "int8", 0.5, 3, open_batch=True),
             IntTensor("w", (2, 4), "int8", [0.5, 0.25], [0, 0], axis=0, data=range(8)),
             IntTensor("state", (1, 2), "int16", 0.125, 0, variable=True),
             IntTensor("inside", (1, 2), "int16", 2.0**-12, 0), IntTensor("y", (1, 2), "int8", 0.5, -3)]
  op = IntOp("UNIDIRECTIONAL_SEQUENCE_LSTM", ["x", "w", "state"], ["y"], {"cell_clip": 1.0}, 2, "lstm", "why",
             ["inside"])
  return IntProgram({tensor.name: tensor for tensor in tensors}, [op], ["x"], ["y"], "a program", ["image"],
                    ["classes"], {"entry": b"content\0"})


def rebuilt(described: IntProgram) -> IntProgram:
  """Returns what comes out of a bundle."""
  pool = Pool()
  fields = json.loads(json.dumps(describe(described, pool, {})))
  return rebuild(fields, Pool(pool.items, bytes(pool.constants)), None, {})


def test_every_field_is_held():
  one, other = program(), rebuilt(program())
  assert [one.tensors[name].difference(tensor) for name, tensor in other.tensors.items()] == [None] * 5
  for field in dataclasses.fields(IntProgram):
    if field.name != "tensors":
      assert getattr(one, field.name) == getattr(other, field.name), field.name


def test_no_field_is_left_out_of_the_program_above():
  found = program()
  for blank, records in ((IntProgram(), [found]), (IntOp("", [], []), found.ops),
                         (IntTensor("", (), ""), found.tensors.values())):
    for name, default in vars(blank).items():
      assert any(repr(getattr(record, name)) != repr(default) for record in records), name
