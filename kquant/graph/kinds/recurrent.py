"""Kinds that go through time steps. `standardize` writes a sequence of fixed length step by step."""

import dataclasses

from kquant.graph.fused_lstm import GATES
from kquant.graph.kinds.calls import Call
from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart
from kquant.graph.weights import WeightFacts

MOST_STEPS = 1000
"""Of a sequence: its network has a dozen calls for each."""
_SHAPES = {1: "steps, features", 2: "steps, length, channels", 3: "steps, height, width, channels"}
"""{sizes of a step: the shape of a sequence}."""


def _why_left(call: Call) -> Refusal:
  """Says why `standardize` leaves a layer."""
  config, (_, steps, *sizes) = call.config, call.inputs[0].shape
  several = "layer" in config or "cells" in config.get("cell", {}).get("config", {})
  config = {**config, **config.get("layer", {}).get("config", {})}  # of what a Bidirectional wraps
  if config.get("data_format") == "channels_first":
    return Refusal("is channels_first", "build the model with channels_last")
  if config.get("stateful"):
    return Refusal("keeps its state from one run to the next (stateful=True)",
                   "use layers of one direction and one cell, and kquant.streaming" if several else
                   "kquant.streaming makes its state an input and an output of the model")
  if config.get("time_major"):
    return Refusal("has its steps in front of the batch (time_major=True)", "build the layer without it")
  if len(call.inputs) == 1 and call.argument(3, "initial_state") is not None:
    return Refusal("is given a state of constants to start from", "make it an input of the model")
  if sizes[1:] and call.argument(1, "mask") is not None:
    return Refusal("is called with a mask", "leave it out, and give the layer steps that all count")
  if None in (steps, *sizes):
    shape = _SHAPES.get(len(sizes), "steps, ...")
    return Refusal("reads a sequence of open length", "fix it: "
                   f"--input_shape={shape.upper().replace(', ', ',')}, or "
                   f"kquant.load_model(path, input_shape=({shape}))")
  if steps > MOST_STEPS:
    return Refusal(f"takes {steps:,} steps, and {MOST_STEPS:,} are the most",
                   "shorten the sequence, or put a strided Conv1D or a pooling layer in front")
  return Refusal("has a cell, an activation or arguments without an integer form",
                 "use LSTM, GRU or SimpleRNN cells with sigmoid or hard_sigmoid gates and tanh or relu")


UNROLLED = dataclasses.replace(taken_apart(), refused_form=_why_left, mask="sequence", takes_mask=True)
_REFUSED = refused("is recurrent and has no integer form here",
                    "replace it by Conv1D layers (a temporal convolution) or attention, unroll it into Dense "
                    "layers, or keep that part of the model in float")

def _fused() -> LayerFacts:
  """A layer of one operator; its recurrent kernels read what the layer itself made."""
  ours = [WeightFacts(f"kernel_{gate}", (1,), (0,), bias=f"bias_{gate}", one_grid=True) for gate in GATES]
  own = [WeightFacts(f"recurrent_{gate}", (1,), (0,), one_grid=True) for gate in GATES]
  return LayerFacts("own", (*ours, *own), narrow=True)


KINDS: dict[str, LayerFacts] = {
    "FusedLSTM": _fused(),
    "LSTM": UNROLLED,
    "GRU": UNROLLED,
    "SimpleRNN": UNROLLED,
    "CuDNNGRU": UNROLLED,
    "CuDNNLSTM": UNROLLED,
    "RNN": UNROLLED,
    "CarryState": LayerFacts("move", carries=True),
    "ConvLSTM1D": UNROLLED,
    "ConvLSTM2D": UNROLLED,
    "ConvLSTM3D": refused("has kernels of three dimensions and no integer form",
                          "use ConvLSTM2D with the depth in the channels"),
    "GRUCell": _REFUSED,
    "LSTMCell": _REFUSED,
    "SimpleRNNCell": _REFUSED,
    "StackedRNNCells": _REFUSED,
}
