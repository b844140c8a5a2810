"""Inputs that put single operators on rounding ties, where two roundings differ if they differ at all.

From the inputs of a network its inner operators cannot be steered, so each one is cut out with the
file's own constants and grids. A sum (convolution, dense layer, mean, pool) is cut to one window, and
its input integers are solved for an accumulator whose scaled value lies nearest to k + 1/2. Of ADD, SUB
and MUL the pairs of integers nearest to a tie are drawn, of a function of one element all 256 integers,
of the float border every tie and both its neighbours.
"""

import dataclasses

import numpy as np

from tflite_export.kernels.call import Call, output_limits
from tflite_export.operators.table import operator_of
from tflite_export.program.program import IntOp, IntProgram, IntTensor
from tflite_export.proof.delegation import arithmetic_of
from tflite_export.proof.tie_sums import integers_on_ties

_NEAREST = 8
"""Of so many nearest ties one is drawn."""
_PAIR_ELEMENTS = 4096
_MOST_ELEMENTS = 2**20


@dataclasses.dataclass
class Probe:
  """One operator of a file by itself.

  Attributes:
    program: the operator alone, with the file's constants and grids.
    inputs: integers for it (floats for a border's QUANTIZE), [n, ...] each.
    op: the operator in the file.
  """

  program: IntProgram
  inputs: list[np.ndarray]
  op: IntOp


def tie_probes(program: IntProgram, rng: np.random.Generator) -> list[Probe]:
  """Returns a probe for every operator over 8-bit integers that sums, joins a pair or is a function of one.

  Pairs of different ranks have none.
  """
  probes = []
  for op in program.ops:
    inputs, output = [program.tensors[name] for name in op.inputs if name], program.tensors[op.outputs[0]]
    types = {t.dtype for t in inputs if t.data is None} | {output.dtype}
    record = operator_of(op.kind)
    if record.converts and record.unary and "float32" in types:
      probes.append(_float_border(program, op))
    elif not types <= {"int8", "uint8"}:
      continue
    elif record.sums:
      probes.append(_sum_probe(program, op, rng))
    elif record.pair and len({len(tensor.shape) for tensor in inputs}) > 1:
      continue
    elif record.pair and op.inputs[0] != op.inputs[1]:
      probes.append(_pair_probe(program, op, rng))
    elif record.unary or record.pair:
      probes.append(_function_probe(program, op))
  return probes


def runs_as_in_file(probe: Probe, program: IntProgram, mode: str) -> bool:
  """Whether the same set of kernels runs the operator alone as in the file."""
  (op,) = probe.program.ops
  alone, whole = ([[p.tensors[name] for name in names] for names in (one.inputs, one.outputs)]
                  for p, one in ((probe.program, op), (program, probe.op)))
  return arithmetic_of(op, *alone, mode) == arithmetic_of(probe.op, *whole, mode)


def _alone(program: IntProgram, op: IntOp, shapes: dict[str, tuple[int, ...]], **options) -> IntProgram:
  """The operator as a program, its activations in other shapes."""
  tensors = {name: program.tensors[name] for name in (*op.inputs, *op.outputs)}
  tensors |= {name: dataclasses.replace(tensors[name], shape=shape) for name, shape in shapes.items()}
  inputs = [name for name in dict.fromkeys(op.inputs) if tensors[name].data is None]
  cut = dataclasses.replace(op, options={**op.options, **options})
  return IntProgram(tensors, [cut], inputs, list(op.outputs))


def _sum_probe(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Probe:
  record = operator_of(op.kind)
  x = program.tensors[op.inputs[record.weighted.places[0] if record.weighted else 0]]
  y = program.tensors[op.outputs[0]]
  sums = record.sums(program, op, rng)
  alone = _alone(program, op, {x.name: sums.image, y.name: sums.result}, **sums.options)
  alone.tensors.update(sums.constants)
  values = integers_on_ties(sums, int(x.zero_point[0]), _limits(op, [x], y), rng)
  return Probe(alone, [values.reshape(-1, *sums.image[1:]).astype(x.dtype)], op)


def _limits(op: IntOp, inputs: list[IntTensor], y: IntTensor) -> tuple[int, int]:
  """Returns the ends of y, behind a fused activation, without its zero point."""
  low, high = output_limits(Call(op, tuple(inputs), (y,), "reference"))
  return low - int(y.zero_point[0]), high - int(y.zero_point[0])


def _pair_probe(program: IntProgram, op: IntOp, rng: np.random.Generator) -> Probe:
  """The first operand is chosen for the second one; the other way round where the first is broadcast."""
  first, second = (program.tensors[name] for name in op.inputs)
  y = program.tensors[op.outputs[0]]
  shapes = {}
  if first.shape == second.shape == y.shape and first.data is None and second.data is None:
    shapes = {tensor.name: (1, _PAIR_ELEMENTS) for tensor in (first, second, y)}
  alone = _alone(program, op, shapes)
  first, second, y = (alone.tensors[name] for name in (*op.inputs, *op.outputs))
  near = _nearest_pairs(op, first, second, y)
  swapped = first.data is not None or first.shape != y.shape and second.data is None
  chosen, given = (second, first) if swapped else (first, second)
  images = max(1, _PAIR_ELEMENTS // int(np.prod(y.shape)))
  values_given = given.data if given.data is not None else rng.integers(-128, 128, (images, *given.shape))
  codes = np.broadcast_to(values_given, (images, *y.shape)).astype(np.int64) + 128
  solved = near[int(swapped), codes, rng.integers(0, near.shape[2], codes.shape)]
  solved = solved[(slice(None), *(slice(0, length) for length in chosen.shape))]
  arrays = {tensor.name: values.reshape(-1, *tensor.shape[1:]).astype(np.int8)
            for tensor, values in ((chosen, solved), (given, values_given))}
  return Probe(alone, [arrays[name] for name in alone.inputs], op)


def _nearest_pairs(op: IntOp, first: IntTensor, second: IntTensor, y: IntTensor) -> np.ndarray:
  """Returns [2, 256, 8]: for each integer of the second (of the first) operand the partners on ties."""
  a, b = (np.arange(-128, 128) - int(t.zero_point[0]) for t in (first, second))
  s_a, s_b, s_y = (float(t.scale[0]) for t in (first, second, y))
  real = operator_of(op.kind).pair(a * s_a, (b * s_b)[:, None]) / s_y
  low, high = _limits(op, [first, second], y)
  apart = np.abs(real - np.floor(real) - 0.5) + ((real < low) | (real > high))
  return np.stack([np.argsort(apart, axis=1, kind="stable")[:, :_NEAREST],
                   np.argsort(apart.T, axis=1, kind="stable")[:, :_NEAREST]]) - 128


def _function_probe(program: IntProgram, op: IntOp) -> Probe:
  """Every integer; where there are slopes, with every slope."""
  x, y = program.tensors[op.inputs[0]], program.tensors[op.outputs[0]]
  limits = np.iinfo(x.dtype)
  codes = np.arange(limits.min, limits.max + 1).astype(x.dtype)
  place = operator_of(op.kind).slopes
  if place is None:
    return Probe(_alone(program, op, {x.name: (1, 256), y.name: (1, 256)}), [codes[None]], op)
  slopes = program.tensors[op.inputs[place]].shape
  shape = (*(1,) * (len(x.shape) - len(slopes)), *slopes)
  images = codes[:max(1, _MOST_ELEMENTS // int(np.prod(shape)))]
  values = np.broadcast_to(images.reshape(-1, *(1,) * (len(shape) - 1)), (len(images), *shape[1:]))
  return Probe(_alone(program, op, {x.name: shape, y.name: shape}), [np.ascontiguousarray(values)], op)


def _float_border(program: IntProgram, op: IntOp) -> Probe:
  """Floats on every tie of the grid and beside it."""
  x, y = program.tensors[op.inputs[0]], program.tensors[op.outputs[0]]
  steps = np.arange(-130, 130) - int(y.zero_point[0]) + (128 if y.dtype == "uint8" else 0) + 0.5
  ties = (steps * np.float64(y.scale[0])).astype(np.float32)
  values = np.concatenate([ties, *(np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf))])
  shape = (1, len(values))
  return Probe(_alone(program, op, {x.name: shape, y.name: shape}), [values[None]], op)
