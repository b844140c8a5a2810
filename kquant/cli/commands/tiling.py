"""What --tile_squeeze_excite does to the float model of a run."""

from typing import Any

import numpy as np
import tf_keras as keras
from absl import flags

from kquant.core.records import Report
from kquant.graph.graph import Graph
from kquant.rewrites.approximate.squeeze_excite import tile_squeeze_excite
from kquant.search.tiles import choose_tiles

FLAGS = flags.FLAGS


def tiled(model: keras.Model, images: list[np.ndarray], report: Report) -> tuple[keras.Model, dict[str, Any]]:
  """Returns the model that is quantized, and what the summary holds of its tiles: {} without the flag.

  Args:
    model: the float model.
    images: calibration inputs, one array each; "auto" chooses by them.
    report: takes the seconds, what was tiled, and what was not with the reason.

  Raises:
    ValueError: nothing was tiled.
  """
  flag = FLAGS.tile_squeeze_excite
  if flag is None:
    return model, {}
  with report.stage("tile"):
    if flag == "auto":
      choice = choose_tiles(model, images, seed=FLAGS.seed)
      print(choice)
      return choice.model, {"tiles": choice.to_json()}
    graph = tile_squeeze_excite(Graph.from_model(model), rows=int(flag))
    if not graph.edits:
      reasons = "; ".join(f"{skip.layer}: {skip.reason}" for skip in graph.skips[:3])
      raise ValueError(f"--tile_squeeze_excite={flag}: no block was tiled ({reasons}); leave the flag out.")
    report.add_edits(graph.edits, graph.skips)
    return graph.to_model(), {"tiles": {"rows": int(flag), "blocks": [edit.what for edit in graph.edits]}}
