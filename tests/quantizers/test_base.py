"""Quantizer: constructor, configs, serialisation by registered name."""

import json

import pytest
import tf_keras as keras

from kquant.quantizers import MinMaxQuantizer, Quantizer, base


@keras.saving.register_keras_serializable("test_base")
class DoubledQuantizer(MinMaxQuantizer):
  """A quantizer of a user's own, with a further argument."""

  def __init__(self, *, doubled: bool = False, **kwargs):
    super().__init__(**kwargs)
    self.doubled = doubled

  def get_config(self):
    return {**super().get_config(), "doubled": self.doubled}


CASES = [{}, {"bits": 3}, {"symmetric": True, "narrow": True, "axis": (2, 3)}, {"bits": 2, "axis": [0]}]


def attributes(quantizer):
  return type(quantizer), quantizer.bits, quantizer.symmetric, quantizer.narrow, quantizer.axis


@pytest.mark.parametrize("options", CASES)
def test_serialized_quantizer_comes_back_the_same_through_json(options):
  quantizer = MinMaxQuantizer(**options)
  fields = json.loads(json.dumps(base.serialize(quantizer)))
  assert attributes(base.deserialize(fields)) == attributes(quantizer)


def test_serialized_form_names_the_registered_class_and_its_arguments():
  fields = base.serialize(MinMaxQuantizer(bits=4, symmetric=True, axis=(3,)))
  assert fields == {"registered_name": "kquant>MinMaxQuantizer",
                    "config": {"bits": 4, "symmetric": True, "narrow": False, "axis": [3]}}


def test_a_users_own_quantizer_keeps_its_class_and_arguments():
  fields = base.serialize(DoubledQuantizer(doubled=True, bits=5))
  assert fields["registered_name"] == "test_base>DoubledQuantizer"
  back = base.deserialize(json.loads(json.dumps(fields)))
  assert type(back) is DoubledQuantizer
  assert back.doubled and back.bits == 5


def test_class_that_is_not_registered_is_an_error_that_names_it_and_the_remedy():
  fields = {"registered_name": "elsewhere>LostQuantizer", "config": {}}
  with pytest.raises(ValueError, match="'elsewhere>LostQuantizer' is not registered; import the module"):
    base.deserialize(fields)


def test_axis_is_kept_as_a_tuple():
  assert MinMaxQuantizer(axis=[2, 3]).axis == (2, 3)
  assert MinMaxQuantizer().axis is None


def test_quantizer_is_abstract():
  with pytest.raises(TypeError):
    Quantizer()


def test_deserialized_quantizers_are_separate_objects():
  quantizer = MinMaxQuantizer(axis=(1,))
  fields = base.serialize(quantizer)
  first, second = base.deserialize(fields), base.deserialize(fields)
  first.bits = 2
  assert second.bits == 8
  assert fields["config"]["bits"] == 8
