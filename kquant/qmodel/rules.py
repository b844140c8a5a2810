"""Checks the rules of a config: their kinds exist, and each could decide for a layer of the model."""

import difflib
import functools

import tensorflow as tf
import tf_keras as keras

from kquant.core.quant_config import QuantConfig
from kquant.core.rule import Rule
from kquant.graph.graph import Graph
from kquant.graph.kinds.table import LAYERS
from kquant.graph.nodes import LayerDef

_NEAREST = 3


def check_kinds(graph: Graph, config: QuantConfig) -> None:
  """Raises ValueError for a kind that is none of tf_keras', TensorFlow's, the table's or the model's.

  Args:
    graph: standardized: its layers know of what layers of the user's they were made.
  """
  all_kinds = {*LAYERS, *(name for name, value in vars(keras.layers).items() if isinstance(value, type)),
               *(kind for node in graph.nodes for _, kind in _subjects(node.layer))}
  for rule in config.rules:
    for kind in rule.kinds:
      if kind not in all_kinds and not _is_operator(kind):
        raise ValueError(f"Rule with {rule}: there is no layer kind {kind!r}; expected "
                         f"{_listed(_nearest(kind, all_kinds))} (a layer of your own is 'module.Class').")


def check_matches(config: QuantConfig, deciders: dict[LayerDef, LayerDef]) -> None:
  """Raises ValueError for a rule that could decide nothing, whatever the rules before it decide.

  Args:
    deciders: {layer: the layer by which rules decide its grid}: a convolution for itself and for the ReLU
      that is fused into it, what computes a tensor for what moves it.
  """
  deciding = {subject for layer in deciders.values() for subject in _subjects(layer)}
  for rule in config.rules:
    if rule.optional or any(rule.matches(*subject) for subject in deciding):
      continue
    passive = [layer for layer in deciders if any(rule.matches(*subject) for subject in _subjects(layer))]
    if passive:
      owners = dict.fromkeys(deciders[layer].name for layer in passive)
      reason = (f"matches {passive[0].name!r} alone, which has no grid of its own; expected the layer whose "
                f"grid it has, {_listed(list(owners)[:_NEAREST])}")
    else:
      reason = (f"matches no layer that has a grid; expected {_listed(_candidates(rule, deciding))} (batch "
                "norms are folded)")
    raise ValueError(f"Rule with {rule} {reason}. Mend it, or set optional=True: then it may match none.")


def _subjects(layer: LayerDef) -> list[tuple[str, str]]:
  return [(layer.name, layer.kind), *layer.origins]


def _candidates(rule: Rule, subjects: set[tuple[str, str]]) -> list[str]:
  """The names nearest to what the rule looks for; the kinds that there are where it names kinds alone."""
  if rule.match:
    return _nearest(rule.match.strip("^$"), {name for name, _ in subjects})
  return sorted({kind for _, kind in subjects})


def _nearest(word: str, words: set[str]) -> list[str]:
  by_lower: dict[str, str] = {}
  for candidate in sorted(words):
    by_lower.setdefault(candidate.lower(), candidate)
  nearest = difflib.get_close_matches(word.lower(), by_lower, n=_NEAREST, cutoff=0.0)
  return [by_lower[name] for name in nearest]


def _listed(words: list[str]) -> str:
  return " or ".join(repr(word) for word in words)


def _is_operator(kind: str) -> bool:
  """Whether it is "tf." and the symbol of a TensorFlow function, as of a TFOpLambda."""
  if kind.startswith("tf.__operators__."):
    return True
  package, *symbol = kind.split(".")
  return package == "tf" and callable(functools.reduce(lambda x, name: getattr(x, name, None), symbol, tf))
