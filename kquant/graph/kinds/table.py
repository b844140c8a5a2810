"""The records of all layer kinds, and how a layer's kind is found. Passes know only equations.

A kind is the class name of a tf_keras layer ("Conv2D"), or "tf." and the symbol of a TFOpLambda
("tf.math.add"). A kind that has no record is opaque: rewrites leave it alone and quantization refuses it
by name.
"""

from collections.abc import Callable
from typing import Any

from kquant.graph.kinds import (
  activations,
  arithmetic,
  attending,
  functions,
  identity,
  inputs,
  linear,
  masking,
  moving,
  normalizing,
  pooling,
  recurrent,
  wrapping,
)
from kquant.graph.kinds.record import LayerFacts

LAYERS: dict[str, LayerFacts] = {
    **inputs.KINDS, **linear.KINDS, **activations.KINDS, **arithmetic.KINDS, **pooling.KINDS, **moving.KINDS,
    **normalizing.KINDS, **attending.KINDS, **identity.KINDS, **recurrent.KINDS,
    **masking.KINDS, **wrapping.KINDS, **functions.KINDS}
"""{kind: its record}. Read it with `facts_of`, add to it with `register`."""

OPAQUE = LayerFacts("opaque")

_KIND_BY_CONFIG: dict[str, Callable[[dict[str, Any]], str]] = {
    **activations.KIND_BY_CONFIG, **moving.KIND_BY_CONFIG}


def kind_of_class(cls: type) -> str:
  """Returns the kind of a class: a user's own bears its module, even if it borrows a name."""
  if cls.__module__.split(".")[0] not in ("tf_keras", "keras", "kquant"):
    return f"{cls.__module__}.{cls.__name__}"
  return normalizing.ALIASES.get(cls.__name__, cls.__name__)


def kind_of(class_name: str, config: dict[str, Any]) -> str:
  """Returns the kind of a layer of that class with that config.

  Some classes hold several kinds: Activation("sigmoid") is "Sigmoid"; Activation("linear"), which
  `standardize` removes from users' models, is kquant's own "Requantize"; a bilinear UpSampling2D is
  "UpSampling2DBilinear"; a TFOpLambda is "tf." and its symbol.
  """
  if class_name in ("TFOpLambda", "SlicingOpLambda"):
    return "tf." + str(config.get("function"))
  by_config = _KIND_BY_CONFIG.get(class_name)
  return by_config(config) if by_config else class_name


def facts_of(kind: str) -> LayerFacts:
  """Returns the record of a kind, or of its class ("Resizing" of "Resizing:area"); OPAQUE without one."""
  return LAYERS.get(kind) or LAYERS.get(kind.split(":")[0], OPAQUE)


def register(kind: str, facts: LayerFacts) -> None:
  """Adds the record of a layer class of the user's own, as `kind_of_class` names it.

  Raises:
    ValueError: a kind of Keras or kquant, whose record stands in its family's file.
  """
  if "." not in kind or kind.startswith("tf."):
    raise ValueError(f"{kind} is a layer of Keras; register classes of your own.")
  LAYERS[kind] = facts
