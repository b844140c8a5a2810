"""The tiny zoo: small networks that hold every layer and structure kquant supports."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

IMAGE = (12, 12, 3)


def randomized(model: keras.Model, seed: int = 0) -> keras.Model:
  """Gives batch norms realistic statistics (negative gammas too) and biases values, in place."""
  rng = np.random.default_rng(seed)
  for weight in model.weights:
    name, shape = weight.name.split("/")[-1].split(":")[0], weight.shape
    if name == "gamma":
      weight.assign(rng.uniform(0.5, 1.5, shape) * rng.choice([1, 1, 1, -1], shape))
    elif name in ("beta", "bias", "moving_mean"):
      weight.assign(rng.normal(0, 0.2, shape))
    elif name == "moving_variance":
      weight.assign(rng.uniform(0.3, 2.0, shape))
  return model


def sample_inputs(model: keras.Model, images: int = 16, seed: int = 1) -> list[np.ndarray]:
  """Returns one float32 array an input, uniform in [-1, 1]."""
  rng = np.random.default_rng(seed)
  return [rng.uniform(-1, 1, (images, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]


def _sequential(name: str, *stack, shape=IMAGE) -> keras.Model:
  x = image = keras.Input(shape, name="image")
  for layer in stack:
    x = layer(x)
  return keras.Model(image, x, name=name)


def conv_bn_relu() -> keras.Model:
  return _sequential("conv_bn_relu", layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"),
                     layers.BatchNormalization(name="bn"), layers.ReLU(name="relu"),
                     layers.GlobalAveragePooling2D(name="pool"), layers.Dense(5, name="dense"))


def mobile_block() -> keras.Model:
  x = image = keras.Input(IMAGE, name="image")
  x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="stem")(x)))
  short = x
  x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(16, 1, name="expand")(x)))
  x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
  x = layers.DepthwiseConv2D(3, strides=2, padding="valid", name="depthwise")(x)
  x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
  x = layers.BatchNormalization()(layers.Conv2D(8, 1, name="project")(x))
  x = layers.Add(name="add")([layers.MaxPooling2D(2)(short), x])
  x = layers.Softmax(name="softmax")(layers.Dense(4, name="logits")(layers.Flatten()(x)))
  return keras.Model(image, x, name="mobile_block")


def convolutions() -> keras.Model:
  """Stride, dilation, groups, depth multiplier, separable, fused activations, bias or none."""
  return _sequential(
      "convolutions", layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="strided"),
      layers.Conv2D(8, 3, dilation_rate=2, padding="same", use_bias=False, name="dilated"),
      layers.Conv2D(12, 3, groups=4, padding="same", name="grouped"),
      layers.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu", name="transposed"),
      layers.DepthwiseConv2D((3, 2), depth_multiplier=2, padding="same", activation="relu", name="double"),
      layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="tanh", name="separable"),
      layers.LeakyReLU(0.2, name="leaky"), layers.Flatten(),
      layers.Dense(3, activation="sigmoid", name="out"))


def sequence() -> keras.Model:
  """One-dimensional layers."""
  return _sequential(
      "sequence", layers.Conv1D(6, 3, padding="causal", dilation_rate=2, activation="relu", name="causal"),
      layers.MaxPooling1D(2), layers.ZeroPadding1D(1), layers.Conv1D(8, 3, strides=2, name="strided"),
      layers.BatchNormalization(), layers.AveragePooling1D(2, strides=1, padding="same"),
      layers.Dense(5, activation="relu", name="per_step"), layers.GlobalMaxPooling1D(),
      layers.Dense(2, name="out"), shape=(24, 4))


def branches() -> keras.Model:
  """Concatenations of grids that collide, pools, up-sampling, a broadcast gate."""
  x = image = keras.Input(IMAGE, name="image")
  x = layers.Conv2D(6, 3, padding="same", name="conv")(x)
  left = layers.MaxPooling2D(2)(layers.ReLU(4.0, name="cap4")(x))
  right = layers.AveragePooling2D(2, padding="same")(layers.Activation("sigmoid", name="gate")(x))
  x = layers.Concatenate(name="both")([left, right])
  squeeze = layers.GlobalAveragePooling2D(keepdims=True)(x)
  squeeze = layers.Dense(12, activation="sigmoid", name="excite")(squeeze)
  x = layers.Multiply(name="gated")([x, squeeze])
  up = layers.UpSampling2D(2, interpolation="bilinear")(x)
  x = layers.Concatenate(name="again")([up, layers.UpSampling2D(2)(x)])
  x = layers.Subtract()([x, layers.Conv2D(24, 1, name="side")(x)])
  return keras.Model(image, layers.GlobalMaxPooling2D()(x), name="branches")


def operators() -> keras.Model:
  """Operators written as x * c, x + y: per channel, scalar and full constants."""
  image = keras.Input(IMAGE, name="image")
  x = image / 2.0 - 0.25
  x = layers.Conv2D(4, 3, name="conv")(x)
  position = np.random.default_rng(3).normal(size=(1, 10, 10, 4)).astype(np.float32)
  y = x * np.array([0.5, 1.0, -2.0, 3.0], np.float32) + position
  x = x + y
  return keras.Model(image, 1.0 - layers.GlobalAveragePooling2D()(x), name="operators")


def lone_batch_norm() -> keras.Model:
  """A batch norm that no layer can take over: behind a concatenation that others read."""
  x = image = keras.Input(IMAGE, name="image")
  x = layers.Conv2D(6, 3, name="conv")(x)
  y = layers.ReLU()(layers.BatchNormalization(name="lone")(x))
  x = layers.Concatenate()([x, layers.Conv2D(6, 1, name="branch")(y)])
  x = layers.Dense(8, name="dense")(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
  x = layers.BatchNormalization(name="vector")(layers.Activation("tanh")(x))
  return keras.Model(image, layers.Activation("sigmoid")(x), name="lone_batch_norm")


def nested_shared() -> keras.Model:
  """A model inside a model, and a layer that is called twice."""
  inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3, padding="same", name="conv"),
                            layers.BatchNormalization(name="bn"), layers.ReLU(name="relu")], name="inner")
  x = image = keras.Input(IMAGE, name="image")
  x = layers.Conv2D(4, 1, strides=2, name="stem")(x)
  shared = layers.Conv2D(4, 1, activation="relu", name="shared")
  x = layers.Add()([shared(inner(x)), shared(x), x])
  return keras.Model(image, layers.GlobalAveragePooling2D()(x), name="nested_shared")


def two_inputs() -> keras.Model:
  """Two inputs by name, two outputs by name."""
  image, vector = keras.Input(IMAGE, name="image"), keras.Input((5,), name="vector")
  x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="conv")(image))
  x = layers.Concatenate()([x, layers.Dense(6, activation="relu", name="embed")(vector)])
  return keras.Model({"image": image, "vector": vector},
                     {"score": layers.Dense(1, activation="sigmoid", name="score")(x),
                      "class": layers.Dense(3, activation="softmax", name="class")(x)}, name="two_inputs")


def functions() -> keras.Model:
  """Functions of one element: by table, by native operators, by plain pieces."""
  x = image = keras.Input(IMAGE, name="image")
  x = layers.Normalization(mean=[0.1, 0.2, -0.1], variance=[0.5, 1.0, 2.0])(layers.Rescaling(2.0, 0.1)(x))
  x = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.Conv2D(6, 3, name="conv")(x))
  for name in ("gelu", "elu", "swish", "softplus", "hard_sigmoid"):
    x = layers.Activation(name, name=name)(layers.Conv2D(6, 1, name=f"before_{name}")(x))
  x = tf.math.exp(layers.Conv2D(6, 1, name="before_exp")(x))
  x = layers.Conv2D(6, 1, name="before_hard_swish")(x)
  x = x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)
  return keras.Model(image, tf.clip_by_value(x, -0.5, 0.5), name="functions")


def rearranged() -> keras.Model:
  """Slicing, splitting, stacking, transposing, resizing, extremes and reductions."""
  x = image = keras.Input(IMAGE, name="image")
  x = layers.Conv2D(8, 3, padding="same", name="conv")(x)
  first, second = tf.split(x, 2, axis=-1)
  x = layers.Average()([first, tf.transpose(second, [0, 2, 1, 3])])
  x = tf.concat([tf.maximum(x, first), layers.Minimum()([second, first])], -1)
  x = tf.nn.space_to_depth(layers.Cropping2D(((1, 1), (2, 0)))(x), 2)
  x = tf.pad(tf.nn.depth_to_space(x, 2), [[0, 0], [1, 1], [0, 2], [0, 0]])
  x = layers.Resizing(9, 7)(x) + tf.image.resize(x, (9, 7), method="nearest")
  rows = tf.unstack(x[:, 1:5:2, ..., 1:], axis=1)
  x = tf.stack(rows, 1)
  x = layers.Permute((2, 1, 3))(x)
  x = tf.reshape(x, [-1, 7, 14])
  y = tf.matmul(x, x, transpose_b=True)
  y = tf.reduce_sum(y, axis=1) + tf.reduce_mean(x, axis=-1) - tf.reduce_max(x, axis=2)
  return keras.Model(image, layers.RepeatVector(3)(y), name="rearranged")


def assert_same_encodings(first, second) -> None:
  """Grids and kernels bit for bit; a bias may differ by one int32 unit.

  TensorFlow's own float sums differ in their last bit with the threads at work and with the place of an
  image in its batch, and a mean of them decides the bias.
  """
  assert first.grids == second.grids
  assert first.integers.keys() == second.integers.keys()
  for key, integers in first.integers.items():
    assert np.abs(integers.astype(np.int64) - second.integers[key]).max() <= key.endswith("/bias"), key


ZOO: dict[str, Callable[[], keras.Model]] = {
    build.__name__: build for build in (conv_bn_relu, mobile_block, convolutions, sequence, branches,
                                        operators, lone_batch_norm, nested_shared, two_inputs, functions,
                                        rearranged)}


def build(name: str, seed: int = 0) -> keras.Model:
  """Returns a model of the zoo with seeded weights."""
  keras.utils.set_random_seed(seed)
  return randomized(ZOO[name](), seed)
