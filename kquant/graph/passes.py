"""Graph passes: a function that edits a Graph in place, usable on a Keras model as well."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import tf_keras as keras
from absl import logging

from kquant.graph.graph import Graph

GraphPass = Callable[..., Any]


def graph_pass(function: Callable[..., None]) -> GraphPass:
  """Makes a pass of a function that edits a Graph.

  Args:
    function: called with the Graph and the options of the pass.

  Returns:
    The pass. Called with a Graph it edits it and returns it; with a model it returns a new model, the
    user's is untouched, and what was skipped is logged; with keywords only it returns the configured pass.
  """

  @functools.wraps(function)
  def apply(target: Graph | keras.Model | None = None, **options: Any) -> Any:
    if target is None:
      configured = functools.partial(apply, **options)
      return functools.update_wrapper(configured, function)
    graph = target if isinstance(target, Graph) else Graph.from_model(target, keep_losses=True)
    graph.pass_name = function.__name__
    function(graph, **options)
    graph.normalize()
    if graph is target:
      return graph
    log_skips(graph)
    return graph.to_model()

  return apply


def rewrite(model: keras.Model, passes: Iterable[GraphPass]) -> keras.Model:
  """Rewrites a model by passes, one after the other; the model itself is not changed.

  What they left alone is logged as warnings of absl, a line each with the layer and the reason.

  Args:
    model: a built model of tf_keras or Keras 3.
    passes: such as `kq.standardize`; options are given by a call without a model:
      `kq.equalize(calibration=images)`.

  Returns:
    A new model. It computes the same function, unless a pass says otherwise.

  Raises:
    TypeError: an entry is not a pass, or not a tf_keras functional model.
    ValueError: the model is not built, or a weight is not finite.

  Example:
    >>> layers = [keras.layers.Conv2D(4, 3, input_shape=(8, 8, 3)), keras.layers.BatchNormalization()]
    >>> folded = kq.rewrite(keras.Sequential(layers), [kq.standardize, kq.fold_batch_norm])
    >>> [type(layer).__name__ for layer in folded.layers]
    ['InputLayer', 'Conv2D']
  """
  graph = Graph.from_model(model, keep_losses=True)
  for entry in passes:
    if not callable(entry):
      raise TypeError(f"rewrite: expected graph passes such as kq.fold_batch_norm, got {entry!r}.")
    entry(graph)
  log_skips(graph)
  return graph.to_model()


def log_skips(graph: Graph) -> None:
  """Logs what passes left alone, and why: one line each."""
  for skip in dict.fromkeys(graph.skips):
    logging.warning("%s: layer %r skipped: %s.", skip.pass_name, skip.layer, skip.reason)
