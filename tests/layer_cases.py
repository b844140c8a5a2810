"""A tiny model for every layer class of tf_keras.layers: what is handled, what is refused by name."""

import inspect
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

IMAGE, ROWS, VOLUME, STEPS = (6, 8, 4), (8, 4), (4, 6, 5, 3), (4, 3)


def layer_classes() -> list[str]:
  """The names of all public layer classes, aliases left out."""
  return sorted({cls.__name__ for cls in vars(layers).values()
                 if inspect.isclass(cls) and issubclass(cls, layers.Layer)})


def one(layer: layers.Layer, shape: tuple = IMAGE, dtype: str = "float32") -> keras.Model:
  """A model of that layer alone."""
  x = keras.Input(shape, dtype=dtype, name="image")
  return keras.Model(x, layer(x), name="one")


def two(layer: layers.Layer, shape: tuple = IMAGE, second: tuple | None = None) -> keras.Model:
  """A model of a layer that joins two tensors, each behind a Dense layer."""
  first, other = keras.Input(shape, name="first"), keras.Input(second or shape, name="second")
  return keras.Model([first, other], layer([layers.Dense(4)(first), layers.Dense(4)(other)]), name="two")


def behind(layer: layers.Layer, shape: tuple = IMAGE) -> keras.Model:
  """A model of a Dense layer, that layer, and a Dense layer: for those that do nothing at inference."""
  x = image = keras.Input(shape, name="image")
  return keras.Model(image, layers.Dense(3)(layer(layers.Dense(4)(x))), name="behind")


def _multi_head() -> keras.Model:
  first, second = keras.Input((5, 6), name="first"), keras.Input((7, 6), name="second")
  own = layers.MultiHeadAttention(2, 3)(first, first)
  return keras.Model([first, second], layers.MultiHeadAttention(2, 4, value_dim=3)(own, second))


def _embedding() -> keras.Model:
  x = image = keras.Input((12,), name="image")
  x = layers.Conv1D(5, 3, activation="relu")(layers.Embedding(40, 8)(x))
  return keras.Model(image, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def _looked_up(layer: layers.Layer, rows: int) -> keras.Model:
  x = image = keras.Input((3,), name="image", dtype="int32")
  return keras.Model(image, layers.Dense(3)(layers.Flatten()(layers.Embedding(rows, 4)(layer(x)))))


def _input_layer() -> keras.Model:
  x = layers.InputLayer(input_shape=IMAGE, name="image").output
  return keras.Model(x, layers.ReLU()(x))


HANDLED: dict[str, Callable[[], keras.Model]] = {
    "Activation": lambda: one(layers.Activation("mish")),
    "ActivityRegularization": lambda: behind(layers.ActivityRegularization(0.1)),
    "Add": lambda: two(layers.Add()),
    "AdditiveAttention": lambda: two(layers.AdditiveAttention(), (5, 6), (7, 6)),
    "AlphaDropout": lambda: behind(layers.AlphaDropout(0.1)),
    "Attention": lambda: two(layers.Attention(use_scale=True), (5, 6), (7, 6)),
    "Average": lambda: two(layers.Average()),
    "AveragePooling1D": lambda: one(layers.AveragePooling1D(2), ROWS),
    "AveragePooling2D": lambda: one(layers.AveragePooling2D(2)),
    "AveragePooling3D": lambda: one(layers.AveragePooling3D((2, 3, 2), (1, 2, 2), padding="same"), VOLUME),
    "BatchNormalization": lambda: one(layers.BatchNormalization()),
    "Bidirectional": lambda: one(layers.Bidirectional(layers.LSTM(3)), STEPS),
    "CategoryEncoding": lambda: one(layers.CategoryEncoding(40, "count"), (3,)),
    "CenterCrop": lambda: one(layers.CenterCrop(4, 3)),
    "Concatenate": lambda: two(layers.Concatenate()),
    "Conv1D": lambda: one(layers.Conv1D(5, 3, activation="relu"), ROWS),
    "Conv1DTranspose": lambda: one(layers.Conv1DTranspose(5, 3, 2, "same", activation="relu"), ROWS),
    "Conv2D": lambda: one(layers.Conv2D(5, 3)),
    "Conv2DTranspose": lambda: one(layers.Conv2DTranspose(5, 3, strides=2, activation="relu")),
    "Conv3D": lambda: one(layers.Conv3D(5, (2, 3, 3), (1, 2, 1), "same", activation="relu"), VOLUME),
    "Conv3DTranspose": lambda: one(layers.Conv3DTranspose(5, (2, 3, 3), (2, 2, 1)), VOLUME),
    "ConvLSTM1D": lambda: one(layers.ConvLSTM1D(3, 2), (4, 6, 3)),
    "ConvLSTM2D": lambda: one(layers.ConvLSTM2D(3, 2), VOLUME),
    "Cropping1D": lambda: one(layers.Cropping1D(1), ROWS),
    "Cropping2D": lambda: one(layers.Cropping2D(((1, 0), (2, 1)))),
    "Cropping3D": lambda: one(layers.Cropping3D(((1, 0), (2, 1), (0, 1))), VOLUME),
    "Dense": lambda: one(layers.Dense(5)),
    "DepthwiseConv1D": lambda: one(layers.DepthwiseConv1D(3, depth_multiplier=2, activation="relu"), ROWS),
    "DepthwiseConv2D": lambda: one(layers.DepthwiseConv2D(3)),
    "Discretization": lambda: _looked_up(layers.Discretization([3.5, 9.0]), 3),
    "Dot": lambda: two(layers.Dot(2), (5, 6), (7, 6)),
    "Dropout": lambda: behind(layers.Dropout(0.5)),
    "ELU": lambda: one(layers.ELU()),
    "EinsumDense": lambda: one(layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de",
                                                  activation="relu"), ROWS),
    "Embedding": _embedding,
    "Flatten": lambda: one(layers.Flatten()),
    "GRU": lambda: one(layers.GRU(3, return_sequences=True), STEPS),
    "GaussianDropout": lambda: behind(layers.GaussianDropout(0.1)),
    "GaussianNoise": lambda: behind(layers.GaussianNoise(0.1)),
    "GlobalAveragePooling1D": lambda: one(layers.GlobalAveragePooling1D(), ROWS),
    "GlobalAveragePooling2D": lambda: one(layers.GlobalAveragePooling2D()),
    "GlobalAveragePooling3D": lambda: one(layers.GlobalAveragePooling3D(), VOLUME),
    "GlobalMaxPooling1D": lambda: one(layers.GlobalMaxPooling1D(), ROWS),
    "GlobalMaxPooling2D": lambda: one(layers.GlobalMaxPooling2D()),
    "GlobalMaxPooling3D": lambda: one(layers.GlobalMaxPooling3D(keepdims=True), VOLUME),
    "GroupNormalization": lambda: one(layers.GroupNormalization(2)),
    "Identity": lambda: behind(layers.Identity()),
    "InputLayer": _input_layer,
    "IntegerLookup": lambda: _looked_up(layers.IntegerLookup(vocabulary=[1, 2, 30]), 4),
    "LSTM": lambda: one(layers.LSTM(3), STEPS),
    "LayerNormalization": lambda: one(layers.LayerNormalization()),
    "Lambda": lambda: one(layers.Lambda(lambda x: 2 * tf.tanh(x) + 1)),
    "LeakyReLU": lambda: one(layers.LeakyReLU()),
    "Masking": lambda: _masking(),
    "LocallyConnected1D": lambda: one(layers.LocallyConnected1D(3, 2, activation="relu"), ROWS),
    "LocallyConnected2D": lambda: one(layers.LocallyConnected2D(3, (2, 3), 2)),
    "MaxPooling1D": lambda: one(layers.MaxPooling1D(2), ROWS),
    "MaxPooling2D": lambda: one(layers.MaxPooling2D(2)),
    "MaxPooling3D": lambda: one(layers.MaxPooling3D((2, 3, 2), strides=(1, 2, 2), padding="same"), VOLUME),
    "Maximum": lambda: two(layers.Maximum()),
    "Minimum": lambda: two(layers.Minimum()),
    "MultiHeadAttention": _multi_head,
    "Multiply": lambda: two(layers.Multiply()),
    "Normalization": lambda: one(layers.Normalization(mean=[0.1] * 4, variance=[0.5] * 4)),
    "PReLU": lambda: one(layers.PReLU(alpha_initializer="random_uniform")),
    "Permute": lambda: one(layers.Permute((2, 1, 3))),
    "RNN": lambda: one(layers.RNN([layers.GRUCell(3, reset_after=False), layers.SimpleRNNCell(2)]), STEPS),
    "RandomBrightness": lambda: behind(layers.RandomBrightness(0.1)),
    "RandomContrast": lambda: behind(layers.RandomContrast(0.1)),
    "RandomCrop": lambda: one(layers.RandomCrop(4, 4)),
    "RandomFlip": lambda: behind(layers.RandomFlip()),
    "RandomRotation": lambda: behind(layers.RandomRotation(0.1)),
    "RandomTranslation": lambda: behind(layers.RandomTranslation(0.1, 0.1)),
    "RandomZoom": lambda: behind(layers.RandomZoom(0.1)),
    "ReLU": lambda: one(layers.ReLU()),
    "RepeatVector": lambda: one(layers.RepeatVector(3), (4,)),
    "Rescaling": lambda: one(layers.Rescaling(2.0, 0.1)),
    "Reshape": lambda: one(layers.Reshape((8, 24))),
    "Resizing": lambda: one(layers.Resizing(5, 9)),
    "SeparableConv1D": lambda: one(layers.SeparableConv1D(5, 3, padding="causal"), ROWS),
    "SeparableConv2D": lambda: one(layers.SeparableConv2D(5, 3)),
    "SimpleRNN": lambda: one(layers.SimpleRNN(3, activation="relu"), STEPS),
    "Softmax": lambda: one(layers.Softmax()),
    "SpatialDropout1D": lambda: behind(layers.SpatialDropout1D(0.1), ROWS),
    "SpatialDropout2D": lambda: behind(layers.SpatialDropout2D(0.1)),
    "SpatialDropout3D": lambda: behind(layers.SpatialDropout3D(0.1), VOLUME),
    "SpectralNormalization": lambda: one(layers.SpectralNormalization(layers.Conv2D(3, 2))),
    "Subtract": lambda: two(layers.Subtract()),
    "ThresholdedReLU": lambda: one(layers.ThresholdedReLU(0.3)),
    "TimeDistributed": lambda: one(layers.TimeDistributed(layers.Dense(3)), ROWS),
    "UnitNormalization": lambda: one(layers.UnitNormalization()),
    "UpSampling1D": lambda: one(layers.UpSampling1D(2), ROWS),
    "UpSampling2D": lambda: one(layers.UpSampling2D(2)),
    "UpSampling3D": lambda: one(layers.UpSampling3D((1, 2, 2)), VOLUME),
    "ZeroPadding1D": lambda: one(layers.ZeroPadding1D(1), ROWS),
    "ZeroPadding2D": lambda: one(layers.ZeroPadding2D(1)),
    "ZeroPadding3D": lambda: one(layers.ZeroPadding3D(((0, 1), (1, 0), (2, 1))), VOLUME),
}

# Plain layers in a form that is handled apart from the others.
HANDLED_FORMS: dict[str, Callable[[], keras.Model]] = {
    "AdditiveAttention(masks)": lambda: _attention(layers.AdditiveAttention(), return_attention_scores=True),
    "Attention(masks)": lambda: _attention(layers.Attention(score_mode="concat"), use_causal_mask=True),
    "EinsumDense(ab...,bc->ac...)": lambda: one(layers.EinsumDense("abcd,be->aecd", (5, None, None))),
    "Embedding(mask_zero=True)": lambda: _padded(layers.Dense(4, activation="relu")),
    "GlobalAveragePooling1D(mask)": lambda: _padded(layers.Dropout(0.1), 300),
    "GroupNormalization(axis=1)": lambda: one(layers.GroupNormalization(2, axis=1)),
    "LayerNormalization(axis=[1, 2])": lambda: one(layers.LayerNormalization(axis=[1, 2])),
    "MultiHeadAttention(masks)": lambda: _multi_head_masks(),
    "Resizing(bicubic, cropped)": lambda: one(layers.Resizing(5, 9, interpolation="bicubic",
                                                              crop_to_aspect_ratio=True)),
    "UpSampling2D(bicubic)": lambda: one(layers.UpSampling2D(2, interpolation="bicubic")),
}


def _padded(layer: layers.Layer, steps: int = 7) -> keras.Model:
  x = image = keras.Input((steps,), name="image")
  x = layer(layers.Embedding(40, 4, mask_zero=True)(x))
  return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def _attention(layer: layers.Layer, **call) -> keras.Model:
  first, second = (keras.Input((steps,), name=name) for steps, name in ((5, "first"), (7, "second")))
  embed = layers.Embedding(40, 4, mask_zero=True)
  outputs = tf.nest.flatten(layer([embed(first), embed(second)], **call))
  return keras.Model([first, second], [layers.Dense(3)(outputs[0]), *outputs[1:]])


def _multi_head_masks() -> keras.Model:
  """Masks of query and value, the causal one and one that is given, and weights that are returned."""
  first, given = keras.Input((5,), name="first"), keras.Input((5, 5), name="given")
  x = layers.Embedding(40, 4, mask_zero=True)(first)
  x, weights = layers.MultiHeadAttention(2, 3)(x, x, attention_mask=given, use_causal_mask=True,
                                               return_attention_scores=True)
  return keras.Model([first, given], [layers.GlobalAveragePooling1D()(x), weights])


REFUSED: dict[str, Callable[[], keras.Model]] = {
    "ConvLSTM3D": lambda: one(layers.ConvLSTM3D(3, 2), (3, *VOLUME)),
    "Hashing": lambda: one(layers.Hashing(4), (3,), "int32"),
    "RandomHeight": lambda: one(layers.RandomHeight(0.1)),
    "RandomWidth": lambda: one(layers.RandomWidth(0.1)),
    "StringLookup": lambda: one(layers.StringLookup(vocabulary=["a", "b"]), (3,), "string"),
    "TextVectorization": lambda: one(layers.TextVectorization(vocabulary=["a", "b"]), (), "string"),
}

NOT_IN_GRAPHS = {
    "AbstractRNNCell": "a base class", "DenseFeatures": "takes feature columns, not tensors",
    "GRUCell": "a part of RNN", "HashedCrossing": "takes unbatched pairs of strings or integers",
    "LSTMCell": "a part of RNN", "Layer": "a base class", "SimpleRNNCell": "a part of RNN",
    "StackedRNNCells": "a part of RNN", "Wrapper": "a base class"}

# Plain layers in a form that is refused.
REFUSED_FORMS: dict[str, Callable[[], keras.Model]] = {
    "EinsumDense(abc,bcd->abd)": lambda: one(layers.EinsumDense("abc,bcd->abd", (8, 5)), ROWS),
    "Lambda(tf.cond)": lambda: one(layers.Lambda(lambda x: tf.cond(tf.size(x) > 0, lambda: x, lambda: -x))),
    "LSTM(stateful=True)": lambda: _stateful(),
    "MultiHeadAttention([rows, columns, features])": lambda: _over_images(),
}


def _over_images() -> keras.Model:
  x = keras.Input((4, 5, 6), name="image")
  return keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))


def _masking() -> keras.Model:
  x = image = keras.Input(ROWS, name="image")
  return keras.Model(image, layers.GlobalAveragePooling1D()(layers.Dense(3)(layers.Masking()(x))))


def _stateful() -> keras.Model:
  x = keras.Input(batch_shape=(1, *STEPS), name="image")
  return keras.Model(x, layers.LSTM(3, stateful=True)(x))


def inputs_of(model: keras.Model, count: int = 8, seed: int = 1) -> list[np.ndarray]:
  """Returns random inputs: indices below 40 where an Embedding reads them, else reals of [-1, 1].

  Behind a random step all is 0 where the model has a mask.
  """
  rng = np.random.default_rng(seed)
  indices = any(isinstance(layer, layers.Embedding | layers.CategoryEncoding) for layer in model.layers)
  padded = any(isinstance(layer, layers.Masking) or getattr(layer, "mask_zero", False)
               for layer in model.layers)
  inputs = []
  for tensor in model.inputs:
    shape = (count, *tensor.shape[1:])
    x = (rng.integers(0, 40, shape) if indices else rng.uniform(-1, 1, shape)).astype(np.float32)
    if padded:
      x[np.arange(shape[1]) >= rng.integers(1, shape[1] + 1, (count, 1))] = 0
    inputs.append(x)
  return inputs
