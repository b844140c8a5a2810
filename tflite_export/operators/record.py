"""Operator: all that is known of one TFLite operator, apart from how the reader reads it.

Writer, checks, batches, lowering, simulator and certificate ask the record; none of them names a kind. The
reader and the verifier do not: what they know lies in `file.layout`, written apart.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tflite_export.kernels.linear import Weighted
from tflite_export.operators.sums import Sums
from tflite_export.program.program import IntOp, IntProgram, Tensors

Rule = Callable[[IntOp, Tensors, Tensors], bool]
"""A question about an operator with its inputs and outputs."""
SumBuilder = Callable[[IntProgram, IntOp, np.random.Generator], Sums]


@dataclasses.dataclass(frozen=True)
class Batch:
  """Where an operator holds the batch beside the shapes of its activations.

  Attributes:
    place: position of the input, a constant whose first entry is the batch.
    option: a list whose first entry is the batch too; None: there is none.
    masks: options whose lowest bit makes the operator take the first axis whole, whatever the constant
      says; the constant then holds the size of the input's first axis.
    may_be_open: whether the constant may say -1, or a mask stand for it.
  """

  place: int
  option: str | None = None
  masks: tuple[str, ...] = ()
  may_be_open: bool = True


@dataclasses.dataclass(frozen=True)
class Simulated:
  """What of an operator the simulator computes; the rest is left out by name.

  Attributes:
    options: {option: its only simulated value}.
    operands, results: types that tensors may have; None: all int8 or all int16.
    constants: {position of an input that must be a constant, beside kernels and biases: what it is}.
    absent: positions of the inputs that are absent.
    of_constants: all its inputs may be constants.
    overflow: called with (arithmetic, inputs, outputs) where the delegate does not run the operator:
      returns how its scales overflow the kernels, or None.
  """

  options: Mapping[str, object] = dataclasses.field(default_factory=dict)
  operands: frozenset[str] | None = None
  results: frozenset[str] | None = None
  constants: Mapping[int, str] = dataclasses.field(default_factory=dict)
  absent: frozenset[int] = frozenset()
  of_constants: bool = False
  overflow: Callable[[str, Tensors, Tensors], str | None] | None = None


@dataclasses.dataclass(frozen=True)
class Operator:
  """One TFLite operator, as LiteRT 2.3 runs it; its defaults are those of an operator without any rule.

  Attributes:
    kind: name of the builtin.
    options: name of its options table in the schema; None where that has none.
    kernel: its integer arithmetic, `kernel(call, *arrays) -> list of arrays`; None: a function of one
      element whose every value is read from the runtime.
    version: over int8 tensors.
    int16: its least version over int16 tensors, measured in both sets of kernels; None: no kernel takes
      them. The delegate takes no operator over int16.
    same_scale: moves or chooses integers: all its quantized tensors share one grid.
    output_grids: {dtype: (scale, zero point)} of its output, where the kernel computes for these only.
    weighted: how it multiplies x by a constant kernel and adds a bias; None: it does not.
    slopes: position of a constant of int8 integers, zero point 0, that multiplies x without a bias.
    matrices: positions of x, of a constant kernel [out, in] on one grid and of its bias (None: none), of each
      matrix product that it computes inside.
    state: what of its state is not as the operator computes on it, in a few words; None where all is.
    sum_limits: {dtype: limit}; 2 max(s_a, s_b) / s_y must lie below: the reference kernel ends the process.
    converts: puts numbers on a grid, or takes them off, and so lies at the border of a file.
    delegated: whether the delegate takes it; None: its integers are the same whoever runs it.
    crosses_batch: whether it works across the images of a batch; None: it never does.
    batch: where it holds the batch; None: nowhere but in shapes.
    simulated: what of it is simulated.
    sums: what one window of it sums, so that inputs can be solved for rounding ties.
    pair: the real function of its two operands, so that pairs on ties can be found.
    unary: a function of one element, on ties where all integers are its input.
    tolerance: LSB by which the simulator may be off: its floats are the C library's.
    ends_process: some inputs end the process of the reference kernel.
  """

  kind: str
  options: str | None = None
  kernel: Callable[..., list] | None = None
  version: int = 1
  int16: int | None = None
  same_scale: bool = False
  output_grids: Mapping[str, tuple[float, int]] | None = None
  weighted: Weighted | None = None
  slopes: int | None = None
  matrices: tuple[tuple[int, int, int | None], ...] = ()
  state: Callable[[IntOp, Tensors, Tensors], str | None] | None = None
  sum_limits: Mapping[str, int] | None = None
  converts: bool = False
  delegated: Rule | None = None
  crosses_batch: Rule | None = None
  batch: Batch | None = None
  simulated: Simulated = Simulated()
  sums: SumBuilder | None = None
  pair: np.ufunc | None = None
  unary: bool = False
  tolerance: int = 0
  ends_process: bool = False

  @property
  def constants(self) -> dict[int, str]:
    """{position of an input that must be a constant where the operator is simulated: what it is}."""
    products = [*self.matrices, *([self.weighted.places] if self.weighted else [])]
    return {**self.simulated.constants, **({} if self.slopes is None else {self.slopes: "slope"}),
            **{kernel: "kernel" for _, kernel, _ in products},
            **{bias: "bias" for *_, bias in products if bias is not None}}

  def version_over(self, dtypes: set[str], version: int | None = None) -> int:
    """Returns the version over tensors of these types.

    Args:
      dtypes: of the tensors.
      version: that over int8, where it is another one than the record's.
    """
    version = self.version if version is None else version
    return max(version, self.int16 or version) if "int16" in dtypes else version
