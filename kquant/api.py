"""quantize(): the one-call route. Nothing but calls to the parts below."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tf_keras as keras
from absl import logging

from kquant.anyprecision.family import FamilyMember, check_widths
from kquant.core.data import all_equal, gather
from kquant.core.encodings import Encodings
from kquant.core.input_range import InputRange
from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import TOLERANCE_DB, Recipe
from kquant.core.records import Report
from kquant.core.target import target
from kquant.graph import keras_calls
from kquant.graph.graph import Graph
from kquant.graph.model_forms import as_tf_keras
from kquant.qmodel.describe import describe
from kquant.qmodel.finalize import finalize_graph
from kquant.search import nested_family
from kquant.search.automatic import automatic
from kquant.search.efforts import effort_steps, with_effort
from kquant.search.float_network import FloatNetwork
from kquant.search.pipeline import quantized, read


@dataclasses.dataclass
class QuantizationResult:
  """What `quantize` found.

  Attributes:
    model: plain tf_keras model whose weights lie on their grids.
    encodings: the grids, and the integers of weights and biases.
    qmodel: the calibrated model with its quantizers: a simulation that can be trained further.
    report: seconds a stage, what was rewritten, what was skipped and why.
    graph: of `model`, which lowering takes in place of reading the model again.
    float_params: {layer: its weights and biases before rounding and correction, for `kquant.analyze`.
    members: {bits: final network} of the config "any8", which `family` returns.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> result = kq.quantize(model, np.ones((8, 3), np.float32))
    >>> grid, kernel = result.encodings["dense/kernel"], result.model.get_layer("dense").kernel.numpy()
    >>> bool((grid.quantize(kernel) == result.encodings.integers["dense/kernel"]).all())
    True
  """

  model: keras.Model
  encodings: Encodings
  qmodel: keras.Model
  report: Report
  graph: Graph | None = None
  float_params: dict[str, dict[str, np.ndarray]] | None = None
  members: dict[int, FamilyMember] | None = None

  def family(self, widths: Sequence[int] | None = None) -> dict[int, FamilyMember]:
    """Returns the networks of several widths: what `export_family` writes.

    Args:
      widths: some of those that there are; None: all of them.

    Returns:
      {bits: final network}, widest first.

    Raises:
      ValueError: a width that there is not, or no config "any8".
    """
    if self.members is None:
      raise ValueError("QuantizationResult: it has one width; quantize with config='any8' for a family.")
    return {bits: self.members[bits] for bits in check_widths(widths, tuple(self.members))}

  def __str__(self) -> str:
    """How many layers have how many bits, the seconds, what was skipped; `kquant.describe` has the layers."""
    return f"{describe(self.qmodel).summary()}\n\n{self.report}"


def quantize(model: keras.Model, calibration: Any, *, config: QuantConfig | str = "int8",
             recipe: Recipe | None = None, effort: str | None = "auto", tolerance: float = TOLERANCE_DB,
             seed: int = 0) -> QuantizationResult:
  """Quantizes a float model after training; the model itself is not changed.

  Args:
    model: a built model of tf_keras or Keras 3; subclassed models are traced.
    calibration: unlabelled inputs as the model takes them, a hundred or more: an array
      [images, ...], a list or dict of them, a tf.data.Dataset, a generator, a .npz or .npy file. Where
      there are none an InputRange: ranges and bias corrections then follow from the batch norms.
    config: which grids: a QuantConfig, or a preset: "int8", "int8_per_tensor", "w4a8". "any8": widths of 4 to
      8 bits with one set of codes; the result is that of 8 bits, `export_family` writes them all. It takes no
      recipe, effort or tolerance.
    recipe: by which methods integers are chosen. What it decides is done as it is; what it leaves open is
      left to the effort, then to the config.
    effort: "fast" corrects biases iteratively; "balanced" also tries joint equalization and closed-form
      rounding, and keeps what holds on a quarter of the images; "best" also fine-tunes. "auto" does what
      "fast" does and compares the result with the float network on an eighth of the images, which it holds
      back; only where that is not good enough it tries more. None: what recipe and config say and no more.
      The report says what each method brought.
    tolerance: for "auto": SQNR in dB of the outputs before a closing softmax that is good enough.
    seed: of the images held back, and of every other random choice.

  Returns:
    The plain model on its grids, the grids and integers, the simulation and the report.

  Raises:
    TypeError: not a model, or calibration data of no known kind.
    UnsupportedLayerError: a layer that has no integer form, by name.
    ValueError: calibration data that do not fit, a weight that is not finite, an unknown preset or effort, a
      rule that matches no layer, a method that needs images where there are none, or one beside "any8".
    FileNotFoundError: there is no such calibration file.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    >>> images = np.random.default_rng(0).random((8, 3), np.float32)
    >>> result = kq.quantize(model, images)
    >>> result.encodings.integers["dense/kernel"].dtype, result.encodings["dense"].bits
    (dtype('int8'), 8)
  """
  model = as_tf_keras(model)
  if config == nested_family.NAME:
    _check_left_out(recipe or Recipe(), effort, tolerance)
    return _family(model, calibration, seed)
  config = QuantConfig.preset(config) if isinstance(config, str) else config
  recipe = recipe or Recipe()
  config = config.following(recipe)
  if effort == "auto" and isinstance(calibration, InputRange):
    effort = None  # there is nothing to watch on
  steps = [] if effort is None else effort_steps(effort, recipe)
  _check_images(config, effort, calibration)
  report = Report()
  with report.stage("rewrite"):
    graph = read(model, config)
  if effort is not None or _looks_again(config, calibration):
    calibration = gather(calibration, keras_calls.input_specs(model))
    _warn_of_constant(calibration)
  source = FloatNetwork(graph, calibration, seed)
  if effort == "auto":
    network = automatic(config, steps, source, report, tolerance=tolerance)
  else:
    config = with_effort(config, steps, source, report) if steps else config
    network = quantized(source.scaled(config, report), config, calibration, report, seed=seed)
  with report.stage("finalize"):
    final, graph, encodings = finalize_graph(network.qmodel, target=target(config.target),
                                             graph=network.graph)
  report.add_edits(graph.edits, [])
  for narrow in report.narrow[:1]:
    others = f" (so has {len(report.narrow) - 1} more)" if report.narrow[1:] else ""
    logging.warning("quantize: %r%s: %s; %s.", narrow.tensor, others, narrow, narrow.remedy())
  return QuantizationResult(final, encodings, network.qmodel, report, graph,
                            network.float_params)


def _family(model: keras.Model, calibration: Any, seed: int) -> QuantizationResult:
  """Returns the result of 8 bits, with the networks of all widths."""
  if isinstance(calibration, InputRange):
    raise ValueError("quantize: config='any8' rounds on calibration images; give some, or choose 'int8'.")
  report = Report()
  with report.stage("rewrite"):
    graph = read(model, QuantConfig())
  images = gather(calibration, keras_calls.input_specs(model))
  _warn_of_constant(images)
  family = nested_family.nested_family(graph, images, report, seed=seed)
  widest, network = next(iter(family.members.values())), family.network
  return QuantizationResult(widest.model, widest.encodings, network.qmodel, report, widest.graph,
                            network.float_params, family.members)


def _check_left_out(recipe: Recipe, effort: str | None, tolerance: float) -> None:
  """Raises ValueError for methods that are asked for beside "any8"."""
  for name, value, default in (("recipe", recipe, Recipe()), ("effort", effort, "auto"),
                               ("tolerance", tolerance, TOLERANCE_DB)):
    if value != default:
      raise ValueError(f"quantize: config='any8' has methods of its own, got {name}={value!r}; leave it out.")


def _check_images(config: QuantConfig, effort: str | None, calibration: Any) -> None:
  """Raises ValueError where a method needs images and there are none."""
  if isinstance(calibration, InputRange) and (effort is not None or config.recipe.needs_images):
    raise ValueError("quantize: an effort, and a recipe with equalize='joint', bias='iterative', finetune or "
                     "any rounding but 'nearest', need calibration images; with an InputRange choose "
                     "equalize='none' or 'pairwise', and bias='analytic'.")


def _warn_of_constant(images: list[np.ndarray]) -> None:
  """Warns where the calibration images, of which there are several, are all the same."""
  count = len(images[0])
  if count > 1 and all_equal(images):
    values = {float(value) for image in images for value in (image[0].min(), image[0].max())}
    each = f" (every value is {values.pop():g})" if len(values) == 1 else ""
    logging.warning("quantize: the %d calibration samples are all the same%s: ranges and comparisons that "
                    "are made on them say nothing of other inputs; give samples of what the model will see.",
                    count, each)


def _looks_again(config: QuantConfig, calibration: Any) -> bool:
  """Whether there is more than one pass over the images."""
  return not isinstance(calibration, InputRange) and (
      config.recipe.needs_images or config.recipe.equalize != "none")
