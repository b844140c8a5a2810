"""LAYERS: what kquant knows of each Keras layer, one row a layer. Passes know only equations.

A layer is looked up by its kind: the class name of a tf_keras layer ("Conv2D"), or "tf." and the
symbol of a TFOpLambda ("tf.math.add"). A kind that has no row is opaque: rewrites leave it alone and
quantization refuses it by name.
"""

import dataclasses

from kquant.graph.weights import WeightFacts


@dataclasses.dataclass(frozen=True)
class LayerFacts:
  """One row.

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
    weights: its quantized weights.
    spatial: number of spatial axes that a convolution or pooling slides over.
    absorbs_relu: a following ReLU may be fused into it, as an activation of the operator or as the ends
      of its output grid.
    pointwise: commutes with a per-channel scale and shift of its input (no padding involved).
    unary: a function of each element alone that a table of 256 integers computes.
  """

  role: str
  weights: tuple[WeightFacts, ...] = ()
  spatial: int = 0
  absorbs_relu: bool = False
  pointwise: bool = False
  unary: bool = False

  @property
  def kernel(self) -> WeightFacts:
    """The one weight of a linear layer."""
    (kernel,) = self.weights
    return kernel


def _linear(name: str, out_axes, in_axes, spatial=0) -> LayerFacts:
  kernel = WeightFacts(name, out_axes, in_axes, key="kernel", bias="bias")
  return LayerFacts("linear", (kernel,), spatial, absorbs_relu=True)


_OWN = LayerFacts("own")
_CLAMPED = LayerFacts("own", absorbs_relu=True)
_MOVE = LayerFacts("move")
_MOVE_POINTWISE = LayerFacts("move", pointwise=True)
_AVERAGE_POOL = LayerFacts("average", pointwise=True)
_MEAN = LayerFacts("own", pointwise=True, absorbs_relu=True)
_FIXED = LayerFacts("fixed")
_IDENTITY = LayerFacts("identity", pointwise=True)

# Functions of each element alone: Keras activations, and operators of TensorFlow.
_UNARY_ACTIVATIONS = ("elu", "exponential", "gelu", "mish", "selu", "softplus", "softsign")
_UNARY_OPERATORS = (
    "clip_by_value", "math.abs", "math.atan", "math.ceil", "math.cos", "math.erf", "math.exp", "math.expm1",
    "math.floor", "math.log", "math.log1p", "math.maximum", "math.minimum", "math.pow", "math.reciprocal",
    "math.round", "math.rsqrt", "math.sign", "math.sin", "math.softplus", "math.sqrt", "math.square",
    "math.truediv", "nn.elu", "nn.gelu", "nn.selu", "nn.softplus", "nn.softsign", "rsqrt", "sqrt")
_UNARY = LayerFacts("own", unary=True, absorbs_relu=True)

LAYERS: dict[str, LayerFacts] = {
    "InputLayer": LayerFacts("input"),
    # kernel [k, in / groups, out]
    "Conv1D": _linear("kernel", (2,), (1,), spatial=1),
    # kernel [h, w, in / groups, out]
    "Conv2D": _linear("kernel", (3,), (2,), spatial=2),
    # kernel [h, w, in, multiplier]; output channel = in * multipliers + multiplier
    "DepthwiseConv2D": _linear("depthwise_kernel", (2, 3), (2,), spatial=2),
    # kernel [h, w, out, in]
    "Conv2DTranspose": _linear("kernel", (2,), (3,), spatial=2),
    # kernel [in, out]
    "Dense": _linear("kernel", (1,), (0,)),
    "BatchNormalization": LayerFacts("affine", absorbs_relu=True),
    "ReLU": LayerFacts("relu"),
    "CappedReLU": LayerFacts("relu"),
    "Add": _CLAMPED,
    "Subtract": _CLAMPED,
    "Multiply": _CLAMPED,
    "tf.math.add": _CLAMPED,
    "tf.math.subtract": _CLAMPED,
    "tf.math.multiply": _CLAMPED,
    "LeakyReLU": _OWN,
    "PReLU": _OWN,
    "Embedding": _OWN,
    "ELU": _UNARY,
    "ThresholdedReLU": _UNARY,
    "ShiftedPower": _UNARY,
    **{f"Activation:{name}": _UNARY for name in _UNARY_ACTIVATIONS},
    **{f"tf.{name}": _UNARY for name in _UNARY_OPERATORS},
    "Maximum": _MOVE,
    "Minimum": _MOVE,
    "tf.math.reduce_mean": _CLAMPED,
    "tf.math.reduce_max": _MOVE,
    "tf.math.reduce_min": _MOVE,
    "tf.linalg.matmul": _CLAMPED,
    "Softmax": _FIXED,
    "Sigmoid": _FIXED,
    "Tanh": _FIXED,
    "Requantize": _OWN,
    "GlobalAveragePooling1D": _MEAN,
    "GlobalAveragePooling2D": _MEAN,
    "AveragePooling1D": _AVERAGE_POOL,
    "AveragePooling2D": _AVERAGE_POOL,
    "MaxPooling1D": _MOVE,
    "MaxPooling2D": _MOVE,
    "GlobalMaxPooling1D": _MOVE,
    "GlobalMaxPooling2D": _MOVE,
    "ZeroPadding1D": _MOVE,
    "ZeroPadding2D": _MOVE,
    "Cropping1D": _MOVE_POINTWISE,
    "Cropping2D": _MOVE_POINTWISE,
    "UpSampling2D": _MOVE_POINTWISE,
    "UpSampling2DBilinear": LayerFacts("average", pointwise=True),
    "Resizing:nearest": _MOVE_POINTWISE,
    "Resizing:bilinear": LayerFacts("average", pointwise=True),
    "Permute": _MOVE,
    "tf.__operators__.getitem": _MOVE,
    "tf.split": _MOVE,
    "tf.unstack": _MOVE,
    "tf.stack": _MOVE,
    "tf.nn.depth_to_space": _MOVE,
    "tf.nn.space_to_depth": _MOVE,
    "tf.compat.v1.pad": _MOVE,
    "Flatten": _MOVE_POINTWISE,
    "Reshape": _MOVE_POINTWISE,
    "Concatenate": _MOVE,
    "Dropout": _IDENTITY,
    "SpatialDropout1D": _IDENTITY,
    "SpatialDropout2D": _IDENTITY,
    "SpatialDropout3D": _IDENTITY,
    "StochasticDepth": _IDENTITY,
    "RandomBrightness": _IDENTITY,
    "RandomContrast": _IDENTITY,
    "RandomFlip": _IDENTITY,
    "RandomRotation": _IDENTITY,
    "RandomTranslation": _IDENTITY,
    "RandomZoom": _IDENTITY,
    "GaussianNoise": _IDENTITY,
    "GaussianDropout": _IDENTITY,
    "AlphaDropout": _IDENTITY,
    "ActivityRegularization": _IDENTITY,
    "Identity": _IDENTITY,
}

OPAQUE = LayerFacts("opaque")

_ACTIVATION_KINDS = {"sigmoid": "Sigmoid", "tanh": "Tanh", "linear": "Requantize"}


def kind_of(class_name: str, config: dict) -> str:
  """Returns the key of LAYERS for a layer of that class with that config.

  Some classes hold several kinds: Activation("sigmoid") is "Sigmoid"; Activation("linear"), which
  `standardize` removes from users' models, is kquant's own "Requantize"; a bilinear UpSampling2D is
  "UpSampling2DBilinear"; a TFOpLambda is "tf." and its symbol.
  """
  if class_name in ("TFOpLambda", "SlicingOpLambda"):
    return "tf." + str(config.get("function"))
  if class_name == "Resizing":
    return f"Resizing:{config['interpolation']}"
  if class_name == "Activation":
    return _ACTIVATION_KINDS.get(str(config.get("activation")), f"Activation:{config['activation']}")
  if class_name == "UpSampling2D" and config.get("interpolation", "nearest") != "nearest":
    return "UpSampling2D" + str(config["interpolation"]).capitalize()
  return class_name


def facts_of(kind: str) -> LayerFacts:
  """Returns the row of a kind; OPAQUE where there is none."""
  return LAYERS.get(kind, OPAQUE)
