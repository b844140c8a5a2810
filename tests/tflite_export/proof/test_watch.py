"""Watch and Runs: the same integers and the same findings, however few bytes fit at a time."""

import numpy as np
import pytest

import kquant as kq
from kquant.graph import sizes
from tests import models
from tflite_export.file.reader import from_bytes
from tflite_export.file.writer import to_bytes
from tflite_export.lowering.lower import lower
from tflite_export.operators.batch import with_batch
from tflite_export.proof import borders, simulate
from tflite_export.proof.borders import border_inputs, on_grid, sliced
from tflite_export.proof.certificate import certify
from tflite_export.proof.runs import Runs
from tflite_export.proof.runtime import Runtime
from tflite_export.proof.verifier import verify
from tflite_export.proof.watch import Watch


@pytest.fixture(scope="module", params=["branches", "two_inputs"])
def case(request):
  model = models.build(request.param)
  images = models.sample_inputs(model, images=5)
  result = kq.quantize(model, dict(zip(model.input_names, images)), effort=None)
  return result, lower(result.model, result.encodings), images


def named(result, images):
  return dict(zip(result.model.input_names, images))


def made(program):
  return [name for op in program.ops for name in op.outputs]


@pytest.mark.parametrize("room", [1, 3000, 2**28])
def test_a_watch_reads_what_one_runtime_with_all_outputs_gives(case, room, monkeypatch):
  result, program, images = case
  inputs, names = border_inputs(program, result.encodings, images), made(program)
  expected = Runtime(to_bytes(program.with_outputs(names))).run_many(inputs)
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", room)
  watch, found = Watch(program, names), {}
  for start in range(0, 5, watch.images):
    for name, integers in watch.read([x[start:start + watch.images] for x in inputs]):
      found.setdefault(name, []).append(integers)
  assert list(found) == names
  for name, whole in zip(names, expected):
    np.testing.assert_array_equal(np.concatenate(found[name]), whole)


def test_a_watch_in_parts_runs_each_operator_once(case, monkeypatch):
  result, program, images = case
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", 1)
  ran, load = [], Runtime.__init__

  def noted(self, data, **options):
    ran.extend(op.kind for op in from_bytes(data).ops)
    load(self, data, **options)

  monkeypatch.setattr(Runtime, "__init__", noted)
  watch = Watch(program, made(program))
  assert len(dict(watch.read([x[:1] for x in border_inputs(program, result.encodings, images)]))) > 3
  assert len(ran) == len(program.ops)


def test_a_watch_takes_whole_batches_within_its_room(case, monkeypatch):
  _, program, _ = case
  program = with_batch(program, 2)
  largest = max(np.prod(program.tensors[name].shape) for name in made(program))
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", int(largest))
  assert Watch(program, made(program)).images == 2
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", 2**40)
  assert Watch(program, made(program)).images % 2 == 0


@pytest.mark.parametrize("batch", [1, 2, None])
def test_findings_do_not_depend_on_how_many_bytes_fit(case, batch, monkeypatch):
  result, program, images = case
  program, data = with_batch(program, batch), named(result, images)
  expected = verify(to_bytes(program), result.model, result.encodings, program=program, images=data)
  assert expected.ok and expected.images == 5
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", 2000)
  monkeypatch.setattr(borders, "ELEMENTS_AT_ONCE", 7)
  found = verify(to_bytes(program), result.model, result.encodings, program=program, images=data)
  assert found == expected


def test_a_fault_in_the_last_image_is_found_where_images_pass_one_by_one(case, monkeypatch):
  result, program, images = case
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", 1)
  network, seen = Runs(to_bytes(program), program, result.model, result.encodings), []
  run_many = Runtime.run_many

  def faulty(self, inputs):
    seen.append(len(inputs[0]))
    at_last = any(np.array_equal(x, y) for x, y in zip(inputs, last))
    return [bits ^ (64 * at_last) for bits in run_many(self, inputs)]

  last = border_inputs(program, result.encodings, [x[-1:] for x in images])
  monkeypatch.setattr(Runtime, "run_many", faulty)
  found = verify(to_bytes(program), result.model, result.encodings, images=named(result, images))
  assert network.images == 1 and set(seen) == {1}
  assert not found.ok and found.max_lsb > 30


@pytest.mark.parametrize("batch", [1, 2, None])
def test_a_certificate_does_not_depend_on_how_many_bytes_fit(case, batch, monkeypatch):
  result, program, images = case
  data, inputs = to_bytes(with_batch(program, batch)), border_inputs(program, result.encodings, images)
  expected = certify(data, inputs, ties=False)
  assert expected["exact"]
  monkeypatch.setattr(sizes, "BYTES_AT_ONCE", 2000)
  found = certify(data, inputs, ties=False)
  for rows in (found, expected):  # the last image fills a batch up
    for kernels in rows["kernel_sets"].values():
      assert all(row.pop("elements") > 0 for row in kernels["operators"].values())
  assert found == expected


def test_the_simulator_keeps_what_is_still_to_be_read(case, monkeypatch):
  result, program, images = case
  inputs = border_inputs(program, result.encodings, images)
  kept, run = [], simulate._run

  def noted(call, values, n):
    kept.append(len(values))
    return run(call, values, n)

  monkeypatch.setattr(simulate, "_run", noted)
  in_turn = dict(simulate.simulate_in_turn(program, inputs))
  assert list(in_turn) == made(program) and max(kept) < len(in_turn) / 2


def test_slices_make_the_whole(monkeypatch):
  x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
  grid = kq.Encoding([0.05], [3])
  monkeypatch.setattr(borders, "ELEMENTS_AT_ONCE", 11)
  assert on_grid(grid, x).dtype == np.int8
  np.testing.assert_array_equal(on_grid(grid, x), grid.quantize(x))
  assert on_grid(kq.Encoding([1e-4], [0], bits=16), x).dtype == np.int16
  assert sliced(np.square, x[:0], np.float32).shape == (0, 5, 7)
