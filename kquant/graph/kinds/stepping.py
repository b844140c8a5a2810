"""Kinds that go through time steps, and those that hide what they compute. None has an integer form."""

from kquant.graph.kinds.record import LayerFacts, refused

_RECURRENT = refused("is recurrent and has no integer form here",
                     "replace it by Conv1D layers (a temporal convolution) or attention, unroll it into "
                     "Dense layers, or keep that part of the model in float")

KINDS: dict[str, LayerFacts] = {
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "SimpleRNN": _RECURRENT,
    "RNN": _RECURRENT,
    "Bidirectional": _RECURRENT,
    "ConvLSTM1D": _RECURRENT,
    "ConvLSTM2D": _RECURRENT,
    "ConvLSTM3D": _RECURRENT,
    "GRUCell": _RECURRENT,
    "LSTMCell": _RECURRENT,
    "SimpleRNNCell": _RECURRENT,
    "StackedRNNCells": _RECURRENT,
    "TimeDistributed": refused("runs a layer per time step",
                               "call Dense on the sequence itself, or reshape the steps into an image and "
                               "use the layer of two dimensions"),
    "Masking": refused("masks time steps", "leave it out and let the model see the padding"),
    "Lambda": refused("hides a Python function",
                      "call TensorFlow functions on the tensors directly, or make it a layer and give it its "
                      "operators with tflite_export.register_lowering"),
}
