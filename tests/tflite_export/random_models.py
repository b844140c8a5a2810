"""Random small Keras models as data: a Recipe says what to build, hypothesis draws and shrinks recipes.

Every recipe can be built: a step names a kind of layer, which of the tensors it reads (0 is the newest
that fits) and small numbers that its settings are made of; a step that fits no tensor is left out.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras
from hypothesis import strategies as st
from tf_keras import layers

import kquant as kq
from tests import models
from tests.tflite_export.random_layers import STEPS

LARGEST_TENSOR = 1500
"""Elements of one image; steps that would make more are left out."""

PRESETS = ("int8", "int8", "int8", "int8_per_tensor", "w4a8")
BORDERS = ("int8", "uint8", "float32")
BATCHES = (1, 1, 1, 2, 5, "dynamic")


@dataclasses.dataclass(frozen=True)
class Step:
  """One step: `kind` is a key of STEPS, `first` and `second` choose tensors, `numbers` the settings."""

  kind: str
  first: int = 0
  second: int = 0
  numbers: tuple[int, ...] = (0, 0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A model, its weights and data, and how it is quantized.

  Attributes:
    inputs: shapes without the batch.
    steps: what is built on them, in order.
    named: inputs and outputs are dicts.
    inner_output: an inner tensor is an output too.
    seed: of weights and data.
    spread: kernels' channels differ by up to 10^spread; with 3 some are dead too.
    magnitude: inputs are uniform in +-10^magnitude.
    preset, io, batch: of `kquant.quantize` and `tflite_export.export`.
    wide: which layers' outputs have 16 bits.
  """

  inputs: tuple[tuple[int, ...], ...]
  steps: tuple[Step, ...]
  named: bool = False
  inner_output: bool = False
  seed: int = 0
  spread: int = 0
  magnitude: int = 0
  preset: str = "int8"
  io: str = "int8"
  batch: int | str = 1
  wide: tuple[int, ...] = ()


def recipes() -> st.SearchStrategy[Recipe]:
  """Recipes of one or two inputs and up to fourteen steps."""
  image = st.tuples(st.integers(2, 9), st.integers(2, 9), st.sampled_from((1, 2, 3, 4, 6, 8)))
  shape = st.one_of(image, image, image, st.tuples(st.integers(3, 12), st.integers(1, 6)),
                    st.tuples(st.integers(1, 9)))
  choice = st.sampled_from((0, 0, 0, 1, 1, 2, 3, 4))
  step = st.builds(Step, st.sampled_from(list(STEPS)), choice, choice,
                   st.tuples(*[st.integers(0, 11)] * 5))
  return st.builds(
      Recipe, st.lists(shape, min_size=1, max_size=2).map(tuple),
      st.lists(step, min_size=1, max_size=14).map(tuple), st.booleans(), st.booleans(), st.integers(0, 999),
      st.sampled_from((0, 0, 0, 1, 2, 3)), st.sampled_from((0, 0, 0, 1, -2, 2)), st.sampled_from(PRESETS),
      st.sampled_from(BORDERS), st.sampled_from(BATCHES),
      st.one_of(st.just(()), st.lists(st.integers(0, 40), max_size=6).map(tuple)))


def border_of(recipe: Recipe) -> str:
  """Returns the io of a recipe; float32 for uint8 where borders may have 16 bits, which uint8 refuses."""
  return "float32" if recipe.wide and recipe.io == "uint8" else recipe.io


def config_of(model: keras.Model, recipe: Recipe) -> kq.QuantConfig:
  """Returns the preset of a recipe, and 16 bits of activations for the layers that it names.

  LSTMs are fused where they can be, but in every fourth network.
  """
  names = [model.layers[index % len(model.layers)].name for index in recipe.wide]
  config = kq.QuantConfig.preset(recipe.preset)
  config = dataclasses.replace(config, recurrent="auto" if len(recipe.steps) % 4 else "unrolled")
  return with_wide_outputs(config, names)


def with_wide_outputs(config: kq.QuantConfig, names: Sequence[str]) -> kq.QuantConfig:
  """Returns the config with 16 bits for the outputs of these layers, where they have grids of their own."""
  spec = kq.TensorSpec(bits=16, symmetric=True)
  rules = tuple(kq.Rule(f"^{re.escape(name)}$", activations=spec, optional=True) for name in names)
  return dataclasses.replace(config, rules=(*rules, *config.rules))


class Builder:
  """A model under construction.

  Attributes:
    tensors: all so far, oldest first.
    called: (layer, shape of its input) of the layers that can be called again.
  """

  def __init__(self, inputs: list):
    self.tensors = list(inputs)
    self.called: list[tuple[keras.layers.Layer, tuple]] = []

  def take(self, step: Step) -> None:
    """Adds what a step makes, if there is a tensor it fits and the result is small enough."""
    ranks, make = STEPS[step.kind]
    fitting = [t for t in self.tensors if len(t.shape) in ranks]
    if not fitting:
      return
    result = make(self, fitting[-1 - step.first % len(fitting)], step)
    for tensor in result if isinstance(result, (list, tuple)) else [result]:
      if tensor is not None and 0 < np.prod(tensor.shape[1:]) <= LARGEST_TENSOR:
        self.tensors.append(tensor)

  def mate(self, x, step: Step, *, axes: int = 0):
    """Another tensor of the shape of x, or where there is none x itself; `axes` last axes may differ."""
    end = len(x.shape) - axes
    mates = [t for t in self.tensors if len(t.shape) == len(x.shape) and t.shape[1:end] == x.shape[1:end]]
    others = [t for t in mates if t is not x]
    return others[-1 - step.second % len(others)] if others else x

  def call(self, layer: keras.layers.Layer, x):
    """Calls a new layer; a later step may call it again."""
    self.called.append((layer, tuple(x.shape)))
    return layer(x)


def build(recipe: Recipe) -> keras.Model:
  """Returns the model of a recipe, with seeded weights.

  Outputs are all tensors that nothing reads, or the last one where all are read.
  """
  keras.utils.set_random_seed(recipe.seed)
  inputs = [keras.Input(shape, name=f"in{index}") for index, shape in enumerate(recipe.inputs)]
  builder = Builder(inputs)
  for step in recipe.steps:
    builder.take(step)
  made = builder.tensors[len(inputs):] or [layers.Flatten()(inputs[0])]
  whole = keras.Model(inputs, made)
  read = {id(t) for node in _calls(whole) for t in tf.nest.flatten((node.call_args, node.call_kwargs))}
  outputs = [t for t in made if id(t) not in read] or made[-1:]
  if recipe.inner_output and made[0] is not outputs[0]:
    outputs.append(made[0])
  used = [t for t in inputs if id(t) in read]
  model = keras.Model(_named(used, recipe.named, "in"), _named(outputs, recipe.named, "out"))
  return _spread(models.randomized(model, recipe.seed), recipe)


def _calls(model: keras.Model) -> list:
  return [node for nodes in model._nodes_by_depth.values() for node in nodes if not node.is_input]


def _named(tensors: list, named: bool, prefix: str):
  if named:
    return {f"{prefix}{index}" if prefix == "out" else t.name: t for index, t in enumerate(tensors)}
  return tensors if tensors[1:] else tensors[0]


def _spread(model: keras.Model, recipe: Recipe) -> keras.Model:
  """Multiplies the output channels of kernels by powers of ten; some become 0 at the largest spread."""
  rng = np.random.default_rng(recipe.seed)
  for weight in model.weights:
    name, shape = weight.name.split("/")[-1].split(":")[0], weight.shape
    if name == "alpha":
      weight.assign(rng.uniform(-0.5, 1.2, shape))
    elif recipe.spread and "kernel" in name:
      factor = 10 ** rng.uniform(-recipe.spread, recipe.spread / 3, shape[-1:])
      dead = rng.random(shape[-1:]) < (0.2 if recipe.spread == 3 else 0)
      weight.assign(weight * np.where(dead, 0, factor))
  return model


def inputs_of(model: keras.Model, recipe: Recipe, images: int = 12) -> list[np.ndarray]:
  """Returns calibration data, one array an input."""
  return [x * np.float32(10.0**recipe.magnitude)
          for x in models.sample_inputs(model, images=images, seed=recipe.seed)]
