"""Whether encodings are those of a model: asked before anything is lowered."""

from collections.abc import Iterator

from kquant.core.encodings import Encodings
from kquant.graph.graph import Graph
from kquant.graph.nodes import Ref

_REMEDY = ("they belong to another model, or the model is not finalised; give the model and the encodings "
           "that kquant.finalize returned together, or --save_model and --encodings of kquant.cli.ptq")


def check_pair(graph: Graph, encodings: Encodings) -> None:
  """Raises ValueError where names or shapes tell that a finalised model and encodings are not of one run.

  Every tensor has a grid, but for indices and what is fused with the ReLU behind it; every weight has
  integers of its shape; no grid is left over.
  """
  for problem in _problems(graph, encodings):
    raise ValueError(f"Encodings {problem}; {_REMEDY}.")


def _problems(graph: Graph, encodings: Encodings) -> Iterator[str]:
  refs = list(dict.fromkeys([ref for node in graph.nodes for ref in node.inputs] + graph.output_refs))
  for ref in refs:
    if ref.key not in encodings and not ref.is_integer and not _is_fused(graph, ref):
      yield f"have no grid for tensor {ref.key!r}"
  for layer in graph.layers:
    for weight in layer.facts.weights:
      key, shape = f"{layer.name}/{weight.key}", layer.params[weight.name].shape
      if key not in encodings.integers:
        yield f"have no integers for {key!r}"
      elif encodings.integers[key].shape != shape:
        yield f"have integers of shape {encodings.integers[key].shape} for {key!r}, whose shape is {shape}"
  known = {ref.key for node in graph.nodes for ref in node.outputs}
  known.update(f"{layer.name}/cell" for layer in graph.layers)
  for key in encodings.grids:
    if key not in known and key not in encodings.integers:
      yield f"have a grid for tensor {key!r}, which the model does not have"


def _is_fused(graph: Graph, ref: Ref) -> bool:
  readers = graph.readers(ref)
  return len(readers) == 1 and readers[0].facts.role == "relu"
