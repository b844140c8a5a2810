"""Kinds that go through time steps. `standardize` writes a sequence of fixed length step by step."""

from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart

_UNROLLED = taken_apart(Refusal(
    "is stateful, masked, of open length, or has a cell or an activation of another kind",
    "give the model inputs of fixed length (--input_shape), and use LSTM, GRU or SimpleRNN without masks"))
RECURRENT = refused("is recurrent and has no integer form here",
                    "replace it by Conv1D layers (a temporal convolution) or attention, unroll it into Dense "
                    "layers, or keep that part of the model in float")

KINDS: dict[str, LayerFacts] = {
    "LSTM": _UNROLLED,
    "GRU": _UNROLLED,
    "SimpleRNN": _UNROLLED,
    "RNN": _UNROLLED,
    "ConvLSTM1D": RECURRENT,
    "ConvLSTM2D": RECURRENT,
    "ConvLSTM3D": RECURRENT,
    "GRUCell": RECURRENT,
    "LSTMCell": RECURRENT,
    "SimpleRNNCell": RECURRENT,
    "StackedRNNCells": RECURRENT,
}
