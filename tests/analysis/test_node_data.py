"""Node data for Google's Model Explorer: the documented layout, on tensors that the file has."""

import json

import numpy as np
import pytest

import kquant as kq
from kquant.analysis.node_data import GRAPH
from tests import models
from tflite_export.lowering.lower import lower


@pytest.fixture(scope="module")
def analyzed():
  """The analysis of a network with a skip connection, and its program."""
  model = models.build("mobile_block")
  images = models.sample_inputs(model)
  result = kq.quantize(model, images, effort=None)
  return kq.analyze(result, images), lower(result.model, result.encodings)


def test_layout(analyzed):
  analysis, program = analyzed
  data = json.loads(json.dumps(analysis.to_node_data(program)))
  assert list(data) == [GRAPH] and data[GRAPH].keys() == {"results", "gradient"}
  for tensor, result in data[GRAPH]["results"].items():
    assert tensor in program.tensors and result.keys() == {"value"} and isinstance(result["value"], float)
  stops = [item["stop"] for item in data[GRAPH]["gradient"]]
  assert (stops[0], stops[-1]) == (0, 1) and stops == sorted(stops)
  assert all(item.keys() == {"stop", "bgColor"} for item in data[GRAPH]["gradient"])


def test_every_tensor_with_noise_is_there(analyzed):
  analysis, program = analyzed
  results = analysis.to_node_data(program)[GRAPH]["results"]
  for row in analysis.rows:
    names = (row.name, *row.shared_with) if row.part == "activation" else (f"{row.name}/kernel",)
    for name in names:
      assert row.solo == 0 or results[name]["value"] == pytest.approx(-10 * np.log10(row.solo), abs=0.01)
  assert not any(name.endswith("/bias") for name in results)
