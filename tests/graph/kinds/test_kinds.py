"""A kind is known in one place: library files that name it are counted; records agree with Keras."""

import ast
import pathlib

import numpy as np
import pytest
from tf_keras import layers

from kquant.graph.kinds import table
from kquant.graph.kinds.table import LAYERS

ROOT = pathlib.Path(__file__).parents[3]
FILES = sorted(path for root in ("kquant", "tflite_export") for path in (ROOT / root).rglob("*.py")
               if "readers" not in path.parts)  # they name the layers of other makes
RECORDS = pathlib.PurePath("kquant/graph/kinds")

# Kinds that a third file may name: the preset int8_tflm is a rule for a kind, as users write it; a product of
# two tensors has an operator, one with a constant is a layer.
THIRD = {"Dense": "kquant/core/quant_config.py",
         "tf.linalg.matmul": "kquant/rewrites/standardize/constant_weights.py"}


def strings(path):
  return {leaf.value for leaf in ast.walk(ast.parse(path.read_text()))
          if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}


@pytest.fixture(scope="module")
def naming():
  """{kind: the library files that name it}."""
  found = {kind: [] for kind in LAYERS}
  for path in FILES:
    for kind in strings(path) & set(LAYERS):
      found[kind].append(path.relative_to(ROOT).as_posix())
  return found


def test_a_kind_is_named_in_its_record_and_in_one_more_file_at_most(naming):
  crowded = {kind: files for kind, files in naming.items()
             if len([file for file in files if file != THIRD.get(kind)]) > 2}
  assert not crowded
  assert {kind: file for kind, file in THIRD.items() if file in naming[kind]} == THIRD


def test_the_second_file_lowers_the_kind_or_writes_it_as_other_layers(naming):
  elsewhere = {file for kind, files in naming.items() for file in files
               if pathlib.PurePath(file).parent != RECORDS and file != THIRD.get(kind)}
  assert {pathlib.PurePath(file).parent.as_posix() for file in elsewhere} == {
      "tflite_export/lowering", "kquant/rewrites/standardize"}


def test_the_families_share_no_kind():
  families = [module.KINDS for module in vars(table).values() if hasattr(module, "KINDS")]
  assert len(families) == 13
  assert sum(map(len, families)) == len(LAYERS) == len(set().union(*families))


def test_opaque_kinds_are_taken_apart_or_refused_or_functions():
  for kind, facts in LAYERS.items():
    known = facts.taken_apart or facts.refusal or facts.operator
    assert bool(known) == (facts.role == "opaque") or facts.operator, kind


def image(channels=3, axes=2):
  return np.random.default_rng(5).normal(size=(2, *[6] * axes, channels)).astype(np.float32)


BUILT = {"ReLU": lambda: layers.ReLU(6.0), "LeakyReLU": layers.LeakyReLU,
         "MaxPooling1D": layers.MaxPooling1D, "MaxPooling2D": layers.MaxPooling2D,
         "AveragePooling2D": layers.AveragePooling2D, "GlobalMaxPooling1D": layers.GlobalMaxPooling1D,
         "GlobalMaxPooling2D": layers.GlobalMaxPooling2D, "UpSampling2D": layers.UpSampling2D,
         "GlobalAveragePooling2D": layers.GlobalAveragePooling2D, "ZeroPadding2D": layers.ZeroPadding2D}


@pytest.mark.parametrize("kind", [kind for kind, facts in LAYERS.items() if facts.passes_copies])
def test_a_copied_channel_comes_out_as_a_copy(kind):
  x, layer = image(), BUILT[kind]()
  np.testing.assert_array_equal(layer(x[..., [0, 1, 1, 2]]), np.asarray(layer(x))[..., [0, 1, 1, 2]])


@pytest.mark.parametrize("kind", [kind for kind, facts in LAYERS.items() if facts.takes_maximum])
def test_maxima_commute_with_a_shift_and_a_positive_scale(kind):
  x, layer = image(axes=int(kind[-2])), BUILT[kind]()
  scale, shift = np.float32([0.5, 2, 3]), np.float32([-1, 0, 4])
  np.testing.assert_allclose(layer(scale * x + shift), scale * layer(x) + shift, rtol=1e-5)
  assert np.abs(layer(-x) + layer(x)).max() > 0.1


@pytest.mark.parametrize("kind", [kind for kind, facts in LAYERS.items() if facts.rectifier])
def test_rectifiers_commute_with_a_positive_scale(kind):
  x, (small, large) = image(), [BUILT[kind]() for _ in range(2)]
  if kind == "ReLU":
    large.max_value *= 4
  np.testing.assert_allclose(large(4 * x), 4 * np.asarray(small(x)), rtol=1e-6)


def test_variables_and_config_entries_are_those_of_keras():
  for kind, facts in LAYERS.items():
    if facts.size:
      assert facts.size in getattr(layers, kind)(4, *[3] * (kind != "Dense")).get_config()
  prelu, embedding = layers.PReLU(), layers.Embedding(5, 2)
  prelu.build((None, 3)), embedding.build((None,))
  assert hasattr(prelu, LAYERS["PReLU"].slopes) and hasattr(embedding, LAYERS["Embedding"].table)
