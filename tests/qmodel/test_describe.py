"""describe(): the rows say what insertion, calibration and finalize did; files lose nothing of them."""

import dataclasses

import numpy as np
import pytest
import tf_keras as keras
from tf_keras import layers

import kquant as kq
from kquant import QuantConfig, Rule, TensorSpec
from kquant.core.target import LITERT, LITERT_UNPACKED
from tests import models


def inserted(name="mobile_block", config="int8", *, calibrated=True, **options):
  model = models.build(name)
  qmodel = kq.insert_quantizers(model, config, **options)
  return kq.calibrate(qmodel, models.sample_inputs(model)) if calibrated else qmodel


def rows_of(qmodel, **options):
  return {row.layer: row for row in kq.describe(qmodel, **options).rows}


@pytest.mark.parametrize("name", [*models.ZOO])
@pytest.mark.parametrize("preset", ["w4a8", "int8_per_tensor"])
def test_rows_are_what_finalize_decides(name, preset):
  qmodel = inserted(name, preset)
  _, encodings = kq.finalize(qmodel)
  for row in kq.describe(qmodel).rows:
    if row.weights:
      grid = encodings.grids[f"{row.layer}/kernel"]
      assert row.weights[0].bits == grid.bits and len(row.weights[0].scale) == len(grid.scale)
      np.testing.assert_allclose(row.weights[0].scale, grid.scale, rtol=1e-6)
    if row.layer in encodings:
      grid = encodings[row.layer]
      assert (row.output.bits, row.output.scale) == (grid.bits, float(grid.scale[0]))
      assert row.output.zero_point == int(grid.zero_point[0])
      assert row.output.range == (float(grid.range[0][0]), float(grid.range[1][0]))


@pytest.mark.parametrize("name", ["mobile_block", "convolutions", "sequence", "nested_shared"])
@pytest.mark.parametrize("preset", ["int8", "w4a8", "w3a8_unpacked", "int16x8"])
def test_bytes_are_those_of_the_integers_in_the_file(name, preset):
  target = LITERT_UNPACKED if "unpacked" in preset else LITERT
  qmodel = inserted(name, preset)
  _, encodings = kq.finalize(qmodel, target=target)
  expected = sum(-(-integers.size // 2) if encodings.grids[key].packed else integers.nbytes
                 for key, integers in encodings.integers.items())
  assert sum(row.bytes for row in kq.describe(qmodel, target=target).rows) == expected


def test_the_rule_that_decided_stands_in_the_row():
  config = QuantConfig((Rule("^project$", weights=TensorSpec(bits=4)),
                        Rule(kinds=("DepthwiseConv2D", "Add"), activations=TensorSpec(bits=6)), Rule()))
  rows = rows_of(inserted(config=config))
  assert rows["project"].weights[0].rule == rows["project"].output.rule == "match '^project$'"
  assert rows["depthwise"].weights[0].rule == rows["add"].output.rule == "kinds DepthwiseConv2D, Add"
  assert rows["re_lu_2"].output.rule == "kinds DepthwiseConv2D, Add"  # fused into depthwise
  assert rows["stem"].weights[0].rule == "any layer" and not rows["add"].weights
  assert (rows["project"].weights[0].bits, rows["add"].output.bits, rows["stem"].output.bits) == (4, 6, 8)


def test_what_is_fused_shared_and_fixed_is_said():
  rows = rows_of(inserted())
  assert rows["stem"].note == "one integer operator with re_lu"
  assert rows["stem"].output == rows["re_lu"].output
  assert rows["re_lu"].note.startswith("fused into stem: one integer operator; one grid with max_pooling2d")
  assert rows["max_pooling2d"].output.shared_with == ("re_lu",)
  assert "on both sides of MaxPooling2D" in rows["max_pooling2d"].note
  assert rows["softmax"].output.fixed and not rows["add"].output.fixed
  assert rows["softmax"].note == "fixed grid: the runtime's Softmax has no other"
  rows = rows_of(inserted("branches"))
  assert "requantized: cap4 has a grid of its own" in rows["cap4/requantize"].note
  rows = rows_of(inserted("nested_shared"))
  assert "shared layer: 2 calls, shared, shared@1" in rows["shared"].note
  assert not rows["shared@1"].weights and rows["shared@1"].bytes == 0 and rows["shared@1"].output


def test_integers_and_a_table():
  indices = keras.Input((5,), dtype="int32", name="indices")
  y = layers.Dense(3, name="dense")(layers.Embedding(7, 4, name="table")(indices))
  qmodel = kq.insert_quantizers(keras.Model(indices, y))
  rows = rows_of(kq.calibrate(qmodel, np.zeros((8, 5), np.int32)))
  assert rows["indices"].output is None and rows["indices"].note == "integers as they are, on no grid"
  assert rows["table"].bytes == 28 and "whole table" in rows["table"].note
  assert rows["dense"].bytes == 12 + 3 * 4


def test_before_calibration_ranges_are_open_but_those_that_are_fixed():
  description = kq.describe(inserted(calibrated=False))
  rows = {row.layer: row for row in description.rows}
  assert rows["stem"].output.range is rows["stem"].output.scale is rows["stem"].output.zero_point is None
  assert rows["softmax"].output.scale == 1 / 256 and rows["stem"].weights[0].scale
  assert "not calibrated" in str(description)


@pytest.mark.parametrize("file", ["q.keras", "q.h5"])
@pytest.mark.parametrize("batch_norm", ["fold", "absorb", "train"])
def test_a_file_loses_nothing(file, batch_norm, tmp_path):
  config = QuantConfig((Rule("^conv$", weights=TensorSpec(bits=4)), Rule()))
  qmodel = inserted("conv_bn_relu", config, batch_norm=batch_norm)
  qmodel.save(tmp_path / file)
  description = kq.describe(qmodel)
  assert kq.describe(kq.load_model(tmp_path / file)) == description
  assert {row.layer: row for row in description.rows}["conv"].weights[0].rule == "match '^conv$'"


def test_a_batch_norm_that_learns_is_said_to_be_absorbed():
  rows = rows_of(inserted("conv_bn_relu", batch_norm="absorb"))
  assert rows["bn"].note.startswith("learns; finalize multiplies it into conv")
  assert rows["conv"].output == rows["bn"].output is not None


def test_printed_it_is_a_table_with_a_summary():
  text = str(kq.describe(inserted(config="w4a8"))).splitlines()
  assert text[0].split()[:3] == ["layer", "kind", "rule"]
  (stem,) = [line for line in text if line.startswith("stem ")]
  assert "Conv2D" in stem and "4 bits" in stem and "(8 channels)" in stem and "any layer" in stem
  assert text[-1] == "13 layers: kernels of 4 bits (5); outputs of 8 bits (13); weights of 1,092 bytes"


def test_rows_are_frozen_data():
  row = kq.describe(inserted()).rows[1]
  with pytest.raises(dataclasses.FrozenInstanceError):
    row.note = ""
  assert dataclasses.asdict(row)["weights"][0]["bits"] == 8


def test_a_result_prints_on_a_short_page():
  model = models.build("nested_shared")
  result = kq.quantize(model, models.sample_inputs(model), config="w4a8",
                       recipe=kq.Recipe(bias="iterative"), effort=None)
  text = str(result)
  assert text.startswith("11 layers: kernels of 4 bits (3); outputs of 8 bits (11)")
  assert "calibrate" in text and "shared" in text and "corrected locally" in text
  assert len(text.splitlines()) < 20


def test_a_model_without_quantizers_is_refused():
  with pytest.raises(ValueError, match="has no quantizers"):
    kq.describe(models.build("conv_bn_relu"))
