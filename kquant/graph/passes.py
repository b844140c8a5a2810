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

  The pass called with a Graph edits it and returns it; with a model it returns a new model, the
  user's is untouched, and what was skipped is logged; with keywords only it returns the configured pass.
  """

  @functools.wraps(function)
  def apply(target: Graph | keras.Model | None = None, **options: Any) -> Any:
    if target is None:
      configured = functools.partial(apply, **options)
      return functools.update_wrapper(configured, function)
    graph = target if isinstance(target, Graph) else Graph.from_model(target)
    graph.pass_name = function.__name__
    function(graph, **options)
    graph.normalize()
    if graph is target:
      return graph
    log_skips(graph)
    return graph.to_model()

  return apply


def rewrite(model: keras.Model, passes: Iterable[GraphPass]) -> keras.Model:
  """Returns a new model: `model` after the passes, which compute the same function.

  What they left alone is logged as warnings of absl, a line each with the layer and the reason.

  Raises:
    TypeError: an entry is not a pass; see also `Graph.from_model`.
  """
  graph = Graph.from_model(model)
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
