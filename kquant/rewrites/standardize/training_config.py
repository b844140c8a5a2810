"""What a layer says of its training, for the layers that it is written as.

A rewrite keeps the function at inference; in a model that goes on training the new layers must also be
regularized and constrained as the old one was. (That they are frozen as it was is seen to by the graph.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import tf_keras as keras

from kquant.graph.graph import Graph
from kquant.graph.nodes import Node, Ref

Axes = Callable[[tuple[int, ...]], tuple[int, ...] | None]
"""Maps axes of a weight to those of its new form; None where they are no axes of it."""


def same_axes(axes: tuple[int, ...]) -> tuple[int, ...]:
  """The axes of a weight that keeps its shape."""
  return axes


def behind_a_row(axes: tuple[int, ...]) -> tuple[int, ...]:
  """The axes of a weight that gets an axis of size 1 in front."""
  return tuple(axis + 1 if axis >= 0 else axis for axis in axes)


def as_matrix(inputs: int) -> Axes:
  """The axes of a weight whose first `inputs` axes become the rows of a matrix, the others its columns."""
  return lambda axes: (0,) if axes == tuple(range(inputs)) else None


def training_config(graph: Graph, node: Node, weights: dict[str, str], *, axes: Axes = same_axes,
                    factor: float = 1.0) -> dict[str, Any]:
  """Returns the entries of a new layer's config by which its weights train as those of a node's layer.

  A constraint that has no form for the new weight is left out and recorded as a skip.

  Args:
    weights: {prefix of the new layer's entries, such as "kernel": prefix of the old one's, "pointwise"}.
    axes: of the new form of the weights, for constraints along axes; a bias keeps its own.
    factor: by which the new weights are larger.
  """
  config: dict[str, Any] = {}
  for new, old in weights.items():
    regularizer = node.config.get(f"{old}_regularizer")
    constraint = node.config.get(f"{old}_constraint")
    config[f"{new}_regularizer"] = _rescaled(graph, node, regularizer, factor) if regularizer else None
    config[f"{new}_constraint"] = constraint
    if constraint and not (new == "bias" and factor == 1):
      config[f"{new}_constraint"] = _along(graph, node, constraint, axes if factor == 1 else None)
  return config


def split_activity_regularizer(graph: Graph, node: Node, behind: Ref) -> None:
  """Lets the regularizer of a layer's output act on the tensor `behind`, which has the activation now."""
  regularizer = node.config.get("activity_regularizer")
  if not regularizer:
    return
  node.layer.config = {**node.layer.config, "activity_regularizer": None}
  factors = _factors(regularizer)
  if factors is None:
    graph.skip(node, "its activity_regularizer is of a class of its own and is left out")
    return
  layer = graph.new_layer(keras.layers.ActivityRegularization, f"{node.layer_name}/activity",
                          {"l1": factors[0], "l2": factors[1]})
  graph.insert_after(behind, layer)


def _factors(regularizer: Any) -> tuple[float, float] | None:
  """Returns (l1, l2) of a regularizer; None for one of another form."""
  made = keras.regularizers.get(regularizer)
  if type(made) not in (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2):
    return None
  return float(getattr(made, "l1", 0.0)), float(getattr(made, "l2", 0.0))


def _rescaled(graph: Graph, node: Node, regularizer: Any, factor: float) -> Any:
  """The regularizer of weights that are larger by a factor: it adds the same to the loss."""
  if factor == 1:
    return regularizer
  factors = _factors(regularizer)
  if factors is None:
    graph.skip(node, "a regularizer of a class of its own has no form for its scaled weights and is left out")
    return None
  return keras.regularizers.serialize(keras.regularizers.L1L2(factors[0] / factor, factors[1] / factor**2))


def _along(graph: Graph, node: Node, constraint: Any, axes: Axes | None) -> Any:
  """The constraint of weights of another form, or None."""
  made = keras.constraints.get(constraint)
  if type(made) is keras.constraints.NonNeg:
    return constraint
  moved = axes(_as_tuple(made.axis)) if axes is not None and hasattr(made, "axis") else None
  if moved is None:
    graph.skip(node, f"its constraint {type(made).__name__} has no form for the layers that it is written as "
                     "and is left out")
    return None
  return keras.constraints.serialize(type(made)(**{**made.get_config(), "axis": list(moved)}))


def _as_tuple(axis: int | Sequence[int]) -> tuple[int, ...]:
  return (axis,) if isinstance(axis, int) else tuple(axis)
