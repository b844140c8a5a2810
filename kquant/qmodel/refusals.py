"""Layers that have no integer form here: why, and what to build instead."""

_RECURRENT = ("is recurrent and has no integer form here",
              "replace it by Conv1D layers (a temporal convolution) or attention, unroll it into Dense "
              "layers, or keep that part of the model in float")
_LOOKUP = ("turns raw features into numbers, which the integer file leaves to the application",
           "apply it to the data before the model and give the model its result as input")
_MASKS = ("is used with a mask, a shape that is open, or other than its plain form",
          "call it without masks on [batch, positions, features] of fixed size, without returned scores")
_NORMALIZES = ("does not normalize the last axis of a tensor of fixed shape",
               "use axis=-1 and a fixed input shape")
_RESIZES = ("resizes in a way no integer operator does", "use interpolation nearest or bilinear, without "
            "antialias and crop_to_aspect_ratio")
_THREE_DIMENSIONS = ("has three spatial dimensions, for which the runtime has no int8 kernel",
                     "split it into Conv2D over two axes and Conv1D over the third (a (2+1)D convolution)")
_COPIES = ("moves elements by amounts that are computed, or moves the batch",
           "give constant amounts, for a tensor of fixed shape, and leave the batch axis alone")
_LOCAL = ("has weights of its own at every position", "use Conv1D or Conv2D, or Flatten and Dense")

REFUSALS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D",
                     "ConvLSTM3D", "GRUCell", "LSTMCell", "SimpleRNNCell", "StackedRNNCells"), _RECURRENT),
    **dict.fromkeys(("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup",
                     "StringLookup", "TextVectorization", "DenseFeatures"), _LOOKUP),
    **dict.fromkeys(("MultiHeadAttention", "Attention"), _MASKS),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization", "UnitNormalization"), _NORMALIZES),
    **dict.fromkeys(("Resizing", "UpSampling2DBicubic", "tf.image.resize"), _RESIZES),
    **dict.fromkeys(("Conv3D", "Conv3DTranspose"), _THREE_DIMENSIONS),
    **dict.fromkeys(("tf.tile", "tf.roll", "tf.gather", "tf.compat.v1.gather"), _COPIES),
    **dict.fromkeys(("LocallyConnected1D", "LocallyConnected2D"), _LOCAL),
    "AdditiveAttention": ("adds every query to every key", "use Attention or MultiHeadAttention"),
    "CenterCrop": ("crops or resizes as the input's size demands", "use Cropping2D or Resizing"),
    "RandomCrop": ("crops or resizes as the input's size demands", "use Cropping2D or Resizing"),
    "RandomHeight": ("leaves the height open", "leave it out, or augment the data before the model"),
    "RandomWidth": ("leaves the width open", "leave it out, or augment the data before the model"),
    "EinsumDense": ("has an equation that is no Dense layer, or an open shape",
                    "contract the last axes of the input with the first of the kernel, as in abc,cd->abd"),
    "tf.einsum": ("has no integer operator", "write it as tf.matmul, tf.transpose and tf.reshape"),
    "Lambda": ("hides a Python function", "call TensorFlow functions on the tensors directly, or make it a "
               "layer and give it its operators with tflite_export.register_lowering"),
    "Masking": ("masks time steps", "leave it out and let the model see the padding"),
    "SpectralNormalization": ("wraps a layer for training", "use the trained layer (its .layer) itself"),
    "TimeDistributed": ("runs a layer per time step", "call Dense on the sequence itself, or reshape the "
                        "steps into an image and use the layer of two dimensions"),
}


def refusal_of(kind: str) -> tuple[str, str] | None:
  """Returns (reason, remedy) of a kind that is refused by design; None for one that is just unknown."""
  return REFUSALS.get(kind) or REFUSALS.get(kind.split(":")[0])
