"""Kinds that go through time steps. None has an integer form."""

from kquant.graph.kinds.record import LayerFacts, refused

RECURRENT = refused("is recurrent and has no integer form here",
                    "replace it by Conv1D layers (a temporal convolution) or attention, unroll it into Dense "
                    "layers, or keep that part of the model in float")

KINDS: dict[str, LayerFacts] = {
    "LSTM": RECURRENT,
    "GRU": RECURRENT,
    "SimpleRNN": RECURRENT,
    "RNN": RECURRENT,
    "ConvLSTM1D": RECURRENT,
    "ConvLSTM2D": RECURRENT,
    "ConvLSTM3D": RECURRENT,
    "GRUCell": RECURRENT,
    "LSTMCell": RECURRENT,
    "SimpleRNNCell": RECURRENT,
    "StackedRNNCells": RECURRENT,
}
