"""LayerFacts: the record of a layer kind."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from kquant.graph.kinds import scale_rules
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.flat_parts import FlatRule
from kquant.graph.kinds.moment_rules import MomentRule
from kquant.graph.kinds.scale_rules import ScaleRule
from kquant.graph.weights import WeightFacts


class Refusal(NamedTuple):
  """Why a layer has no integer form, and what to build instead. Both continue "Layer 'name' (Kind) "."""

  reason: str
  remedy: str


RangeRule = Callable[[Call], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class LayerFacts:
  """What kquant knows of one layer kind.

  Attributes:
    role: what the layer does to grids:
      "input"     a model input
      "linear"    one kernel, a bias; an output grid of its own
      "affine"    per-channel scale and shift (batch norm)
      "relu"      clamps; fuses into what produces its input
      "own"       an output grid of its own (Add, LeakyReLU, global average; a user's layer with weights)
      "fixed"     the runtime fixes the output grid (softmax)
      "move"      moves integers: input and output share one grid
      "average"   input and output share one grid, values are averaged and rounded
      "identity"  does nothing at inference; `standardize` drops it
      "opaque"    no integer form as it stands: `standardize` writes it as other layers, or it is refused
    weights: its quantized weights.
    spatial: number of spatial axes that a convolution or pooling slides over; a linear kind with none is a
      matrix product (dense).
    absorbs_relu: a following ReLU may be fused into it, as an activation of the operator or as the ends
      of its output grid.
    pointwise: commutes with a per-channel scale and shift of its input (no padding involved).
    unary: a function of each element alone that a table of 256 integers computes.

    transposed: a convolution that spreads each input over several outputs.
    depthwise: a convolution that makes each output channel of one input channel.
    packs: its operator takes a kernel of at most 4 bits stored as INT4, two integers a byte.
    narrow: its operator takes activations of 8 bits alone.
    size: config entry that counts its output channels, where channels can be added one by one.

    arithmetic: "sum" of tensors, or of one and a constant, or "product" of tensors, computed by one operator.
    takes_constant: a call may have a constant as one operand.
    operator: what a TensorFlow function of two operands, one of them maybe a constant, computes: "add",
      "subtract", "multiply", "divide", or "negative" of one; `standardize` writes it as a layer.

    takes_maximum: takes maxima over positions: commutes with a shift and a positive scale of each channel.
    rectifier: k f(x) = f(k x) for k > 0, where its config's cap, if any, is scaled too.
    joins: puts its inputs side by side along the axis that its config names.
    pads: puts zeros around its input.
    pads_as_called: puts around its input what its call says: a constant, or elements of the input mirrored.
    pools: makes one value of each channel, or fewer, as the mean over positions.
    passes_copies: does the same to each channel, however many there are: a copy of an input channel is a
      copy of the output channel.
    training_only: an identity that changes values, or adds a loss, while a model trains.
    requantizes: puts its input on a grid of its own and does nothing else.
    takes_scores: its input are the scores (logits) of classes.

    fixed_grid: name of the only output grid that its operator takes, a key of `Target.fixed`; "" for any.
    caps: name of the variable with one cap a channel of a ReLU.
    slopes: name of the variable with the slopes below 0.
    table: name of the variable whose rows are looked up by an integer input.
    counts_rows: an index that its table has no row for is an error.
    takes_indices: reads an integer input of the model.
    known_range: returns (low, high) of its output where that is known without data.
    compares: config entry of the number that it tells from all others, on the grid of its input.
    chooses: chooses by a mask, its first input or a constant, among the others, with which it shares a grid.
    carries: passes its first input on; the next run of the network gets it in the place of the second.
    mask: the mask of its output, where that is not its first input's if its class supports masks: "made" by
      the layer, "all" of its inputs' masks, these "joined", of a "sequence" alone, or "none".
    takes_mask: a mask of its inputs changes what it computes; `standardize` makes it an argument "mask".

    flat_rule: between which inputs a function of one element changes; None where it is flat nowhere.
    scale_rule: ties the channels of a call that must be scaled together.
    moment_rule: moments of a call's output from those of its inputs; None where they are not known.
    refusal: reason and remedy of a kind, or of the forms of it that `standardize` leaves; None where it is
      just unknown or has an integer form.
    refused_form: returns the refusal of a call that has no integer form though its kind has one.
    taken_apart: `standardize` writes it as other layers.
    casts: changes the type of a tensor.
    traced: what its call calls takes its place when a model is read; refused where that fails.
  """

  role: str
  weights: tuple[WeightFacts, ...] = ()
  spatial: int = 0
  absorbs_relu: bool = False
  pointwise: bool = False
  unary: bool = False
  transposed: bool = False
  depthwise: bool = False
  packs: bool = False
  narrow: bool = False
  size: str = ""
  arithmetic: str = ""
  takes_constant: bool = False
  operator: str = ""
  takes_maximum: bool = False
  rectifier: bool = False
  joins: bool = False
  pads: bool = False
  pads_as_called: bool = False
  pools: bool = False
  passes_copies: bool = False
  training_only: bool = False
  requantizes: bool = False
  takes_scores: bool = False
  fixed_grid: str = ""
  caps: str = ""
  slopes: str = ""
  table: str = ""
  counts_rows: bool = False
  takes_indices: bool = False
  known_range: RangeRule | None = None
  compares: str = ""
  chooses: bool = False
  carries: bool = False
  mask: str = ""
  takes_mask: bool = False
  flat_rule: FlatRule | None = None
  scale_rule: ScaleRule = scale_rules.stop
  moment_rule: MomentRule | None = None
  refusal: Refusal | None = None
  refused_form: Callable[[Call], Refusal | None] | None = None
  taken_apart: bool = False
  casts: bool = False
  traced: bool = False

  @property
  def kernel(self) -> WeightFacts:
    """The one weight of a linear layer."""
    (kernel,) = self.weights
    return kernel

  @property
  def tapers(self) -> bool:
    """A function of each element alone that may be nearly flat toward an end, with no end that is exact."""
    return (self.unary or bool(self.fixed_grid) and not self.takes_scores) and self.flat_rule is None


def taken_apart(refusal: Refusal | None = None) -> LayerFacts:
  """Returns the record of a kind that `standardize` writes as other layers.

  Args:
    refusal: of the forms that it leaves.
  """
  return LayerFacts("opaque", taken_apart=True, refusal=refusal)


def refused(reason: str, remedy: str) -> LayerFacts:
  """Returns the record of a kind that has no integer form."""
  return LayerFacts("opaque", refusal=Refusal(reason, remedy))
