"""Kinds that go through time steps. `standardize` writes a sequence of fixed length step by step."""

import dataclasses

from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart

UNROLLED = dataclasses.replace(taken_apart(Refusal(
    "is stateful, of open length or more than 1,000 steps, or has a cell or an activation of another kind",
    "give the model inputs of fixed length, 1,000 steps at most (--input_shape), and use LSTM, GRU or "
    "SimpleRNN cells with sigmoid and tanh")), mask="sequence", takes_mask=True)
_REFUSED = refused("is recurrent and has no integer form here",
                    "replace it by Conv1D layers (a temporal convolution) or attention, unroll it into Dense "
                    "layers, or keep that part of the model in float")

KINDS: dict[str, LayerFacts] = {
    "LSTM": UNROLLED,
    "GRU": UNROLLED,
    "SimpleRNN": UNROLLED,
    "RNN": UNROLLED,
    "ConvLSTM1D": _REFUSED,
    "ConvLSTM2D": _REFUSED,
    "ConvLSTM3D": _REFUSED,
    "GRUCell": _REFUSED,
    "LSTMCell": _REFUSED,
    "SimpleRNNCell": _REFUSED,
    "StackedRNNCells": _REFUSED,
}
