"""Bias correction: the mean error that rounding a kernel makes is taken out of the bias.

Rounding leaves E[dy_o] = sum over taps and inputs of dW[.., i, o] E[x_i] at output o; with few weights
an output (9 in a depthwise kernel) and inputs of one sign it does not average out (Finkelstein et al.
2019, "Fighting Quantization Bias With Bias"; Nagel et al. 2019, section 4.2).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tf_keras as keras
from absl import logging

from kquant.core import data, numerics
from kquant.core.input_range import InputRange
from kquant.core.recipe import BIAS_CORRECTIONS
from kquant.graph import keras_calls
from kquant.graph.fused_lstm import GATES
from kquant.graph.graph import Graph
from kquant.graph.nodes import weights_of_class
from kquant.graph.weights import WeightFacts
from kquant.ptq.layerwise.streaming import LayerTurn, layer_turns
from kquant.qmodel.calibrate import Statistics, observe
from kquant.qmodel.data_free import known_without_data
from kquant.qmodel.quantize_weights import QuantizeWeights
from kquant.qmodel.states import recurrent_form
from kquant.rewrites.folding.batch_norm import fold_batch_norm
from kquant.rewrites.standardize.standardize import standardize

SHARED_REASON = "called more than once, or not linear: its biases are corrected locally"


def output_shift(kernel_error: np.ndarray, input_mean: np.ndarray, facts: WeightFacts) -> np.ndarray:
  """Returns the mean output error of each channel, float64 [out channels].

  Args:
    kernel_error: quantized less float kernel, Keras layout.
    input_mean: mean of the input over images and positions, [in channels].
    facts: which axes of the kernel are inputs and outputs.

  Zero padding is not accounted for: at a border fewer taps see the mean.
  """
  spread = numerics.along_inputs(input_mean, kernel_error.shape, facts.in_axes[0])
  taps = tuple(i for i in range(kernel_error.ndim) if i not in facts.out_axes)
  return (kernel_error.astype(np.float64) * spread).sum(axis=taps).reshape(-1)


def correct_bias(qmodel: keras.Model, float_model: keras.Model, calibration: Any = None, *,
                 method: str = "local", shrink: bool = True) -> keras.Model:
  """Takes the mean error of rounded kernels out of the biases of qmodel, in place.

  Args:
    qmodel: what `insert_quantizers` returned; for "iterative" calibrated.
    float_model: the float model that it was made from, batch norms folded or not.
    calibration: inputs, as `calibrate` takes them.
    method: "local": each layer's own shift, from the float network's input means; "analytic": the same
      with the means that batch norms knew, for which calibration is an InputRange or None; "iterative":
      layer after layer, with all before it quantized and corrected. A second call gives the same biases.
      Layers that are called more than once are corrected locally; a warning of absl names them.
    shrink: for "iterative": take out of each mean error what chance gives with so few images; False leaves
      no mean error on the calibration images.

  Returns:
    qmodel.

  Raises:
    ValueError: an unknown method; data that do not fit; a float_model that qmodel was not made from, or a
      layer whose batch norm learns in place of its bias; for "analytic" a model in which no layer knows of a
      batch norm; for "iterative" no calibration.
    TypeError: data of another kind.

  Example:
    >>> model = keras.Sequential([keras.layers.Dense(2, input_shape=(3,))])
    >>> images = np.ones((8, 3), np.float32)
    >>> qmodel = kq.calibrate(kq.insert_quantizers(model, "w4a8"), images)
    >>> error = np.abs(qmodel(images) - model(images)).mean()
    >>> bool(np.abs(kq.correct_bias(qmodel, model, images)(images) - model(images)).mean() < error)
    True
  """
  if method not in BIAS_CORRECTIONS[1:]:
    raise ValueError(f"correct_bias: method must be one of {BIAS_CORRECTIONS[1:]}, got {method!r}.")
  graph = standardize(Graph.from_model(float_model), recurrent=recurrent_form(qmodel))
  float_params = linear_params(fold_batch_norm(graph))
  for wrapper in wrapped_layers(qmodel, float_params):
    for weight in _biased_weights(wrapper):
      getattr(wrapper.layer, weight.bias).assign(float_params[wrapper.name][weight.bias])
  if method == "analytic":
    correct_analytic_shift(qmodel, float_params, calibration)
  elif method == "local":
    correct_local_shift(qmodel, float_params, observe(qmodel, calibration))
  else:
    images = data.gather(calibration, keras_calls.input_specs(qmodel))
    statistics = observe(qmodel, images)
    correct_local_shift(qmodel, float_params, statistics)
    for name in correct_iteratively(layer_turns(qmodel, images), statistics, shrink=shrink):
      logging.warning("correct_bias: layer %r is %s.", name, SHARED_REASON)
  return qmodel


def linear_params(graph: Graph) -> dict[str, dict[str, np.ndarray]]:
  """Returns {layer: its quantized weights and their biases, by name} of a standardized float graph."""
  return {node.layer.name: {name: node.layer.params[name] for weight in node.facts.weights
                            for name in (weight.name, weight.bias) if name}
          for node in graph.nodes if node.facts.weights}


def correct_local_shift(qmodel: keras.Model, float_params: dict[str, dict[str, np.ndarray]],
                        statistics: Statistics) -> None:
  """Sets each bias to the float one less the shift that its layer's rounding makes.

  Raises:
    ValueError: float_params lack a layer of qmodel.
  """
  for wrapper in wrapped_layers(qmodel, float_params):
    correct_shift(wrapper, float_params[wrapper.name], statistics)


def correct_shift(wrapper: QuantizeWeights, params: dict[str, np.ndarray], statistics: Statistics) -> None:
  """Sets the biases of one layer to the float ones less the shift that its rounding makes.

  Args:
    params: the layer's float weights by name.
  """
  values = wrapper.weight_values()
  rounded = {name: grid.dequantize(grid.quantize(values[name]))
             for name, grid in wrapper.weight_encodings().items()}
  for bias, corrected in corrected_biases(wrapper, params, rounded, statistics).items():
    getattr(wrapper.layer, bias).assign(corrected)


def corrected_biases(wrapper: QuantizeWeights, params: dict[str, np.ndarray], rounded: dict[str, np.ndarray],
                     statistics: Statistics) -> dict[str, np.ndarray]:
  """Returns the biases of a layer by name, float32: the float ones less the shift that rounding makes.

  Args:
    params: the layer's float weights and biases by name.
    rounded: its weights as values of their grids, by name.
    statistics: of the float network.
  """
  errors = {name: values.astype(np.float64) - params[name] for name, values in rounded.items()}
  return {bias: (params[bias] - shift).astype(np.float32)
          for bias, shift in local_shifts(wrapper, errors, statistics).items()}


def local_shifts(wrapper: QuantizeWeights, errors: dict[str, np.ndarray],
                 statistics: Statistics) -> dict[str, np.ndarray]:
  """Returns {bias of a layer: mean error [channels] of the products that it is added to}.

  Args:
    errors: {weight: quantized less float kernel}.
    statistics: of the float network; where they lack the states that a fused LSTM reads, these count as 0.
  """
  mean, states = statistics.input_means[wrapper.name], statistics.state_means.get(wrapper.name)
  shifts = {weight.bias: output_shift(errors[weight.name], mean, weight)
            for weight in _biased_weights(wrapper)}
  if states is not None:
    for gate in GATES:
      shifts[f"bias_{gate}"] += states @ errors[f"recurrent_{gate}"]
  return shifts


def correct_analytic_shift(qmodel: keras.Model, float_params: dict[str, dict[str, np.ndarray]],
                           calibration: Any = None, *, graph: Graph | None = None) -> None:
  """`correct_local_shift` with the means of inputs that batch norms knew (Nagel et al. 2019, section 4.2.1).

  Args:
    calibration: an InputRange; with anything else a layer whose input follows from no batch norm keeps
      its bias.
    graph: that qmodel was made of, where the caller has it.

  Raises:
    ValueError: float_params lack a layer of qmodel, or no layer knows of a batch norm.
  """
  input_range = calibration if isinstance(calibration, InputRange) else None
  _, means = known_without_data(qmodel, input_range, graph=graph)
  correct_local_shift(qmodel, float_params, Statistics({}, means, {}))


def correct_iteratively(turns: Iterable[LayerTurn], statistics: Statistics, *,
                        shrink: bool = True) -> list[str]:
  """Sets each bias so that its layer's mean output is the float network's, layer after layer.

  b -= mean(y_quantized - y_float) before the activation, with all layers before it quantized and
  corrected (Finkelstein et al. 2019, IBC): correcting all layers at once by their total shifts would
  count each shift again in every layer behind it.

  Args:
    turns: of all layers with quantized weights, their biases corrected locally (`layer_turns`).
    statistics: of the float network on the same images.
    shrink: as in `correct_bias`.

  Returns:
    Names of layers that stay corrected locally: shared ones, which have one bias for several means, and
    those that are not linear, whose output is not one weight's alone.
  """
  left = []
  for turn in turns:
    if turn.patches is None or turn.is_shared:
      left.append(turn.layer.name)
      continue
    correct_mean(turn, statistics, shrink=shrink)
  return list(dict.fromkeys(left))


def correct_mean(turn: LayerTurn, statistics: Statistics, *, shrink: bool = True) -> None:
  """Takes the mean error of a layer's outputs, as its weights are now, out of its bias."""
  bias = turn.layer.layer.bias
  errors = turn.image_means() - statistics.output_means[turn.layer.name]
  mean = shrunk_mean(errors) if shrink else errors.mean(axis=0)
  bias.assign((bias.numpy() - mean).astype(np.float32))


def shrunk_mean(errors: np.ndarray) -> np.ndarray:
  """Returns the mean over images of errors [images, channels], less what chance alone would give.

  Empirical Bayes: the true means of a layer's channels have variance tau^2 = E[d^2] - E[se^2], se the
  standard error of each mean d; the posterior mean is d tau^2 / (tau^2 + se^2).
  """
  mean = errors.mean(axis=0)
  error = errors.var(axis=0) / max(len(errors) - 1, 1)
  spread = max((mean**2).mean() - error.mean(), 0.0)
  return mean * spread / np.maximum(spread + error, 1e-30)


def _biased_weights(wrapper: QuantizeWeights) -> list[WeightFacts]:
  """The weights of a layer that have a bias."""
  return [weight for weight in weights_of_class(type(wrapper.layer)) if weight.bias]


def wrapped_layers(qmodel: keras.Model, float_params: dict[str, dict[str, np.ndarray]], *,
                   where: str = "correct_bias") -> list[QuantizeWeights]:
  """Returns the layers with quantized weights.

  Args:
    where: the function that the user called, for messages.

  Raises:
    ValueError: float_params lack one of them, or its batch norm learns in place of its bias.
  """
  wrappers = [layer for layer in qmodel.layers if isinstance(layer, QuantizeWeights)]
  for wrapper in wrappers:
    if wrapper.name not in float_params:
      raise ValueError(f"{where}: the float model has no layer {wrapper.name!r}; pass the rewritten "
                       "model that insert_quantizers was given.")
    if any(getattr(wrapper.layer, weight.bias) is None for weight in _biased_weights(wrapper)):
      raise ValueError(f"{where}: layer {wrapper.name!r} has a batch norm that learns instead of a bias; "
                       "train with kq.ReestimateBatchNorm, or insert with batch_norm=\"fold\".")
  return wrappers
