"""TensorSpec, Rule, QuantConfig: checked, first match wins, JSON both ways."""

import dataclasses
import json

import pytest

from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import Recipe
from kquant.core.rule import Rule
from kquant.core.tensor_spec import INT8_ACTIVATIONS, INT8_WEIGHTS, TensorSpec, parse_range

PRESETS = ["int8", "int8_per_tensor", "int16x8", "w4a8_unpacked",
           *(f"w{w}a{a}" for w in range(2, 9) for a in range(2, 9))]


@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 15, 32])
def test_bits_outside_2_to_8_are_refused(bits):
  with pytest.raises(ValueError, match=f"bits must be 2 to 8, got {bits}"):
    TensorSpec(bits=bits)


def test_16_bits_are_for_symmetric_activations():
  wide = TensorSpec(bits=16, symmetric=True)
  assert QuantConfig.preset("int16x8").rules == (Rule(activations=wide),)
  with pytest.raises(ValueError, match="grids of 16 bits must be symmetric; set symmetric=True"):
    TensorSpec(bits=16, symmetric=False)
  with pytest.raises(ValueError, match="Rule 'conv': weights have 2 to 8 bits, got 16"):
    Rule(match="conv", weights=wide)


def test_unpacked_presets_differ_by_their_target_alone():
  packed, unpacked = QuantConfig.preset("w3a8"), QuantConfig.preset("w3a8_unpacked")
  assert (packed.target, unpacked.target) == ("litert", "litert_unpacked")
  assert dataclasses.replace(unpacked, target="litert") == packed


def test_a_grid_per_channel_must_be_symmetric():
  with pytest.raises(ValueError, match="set symmetric=True"):
    TensorSpec(symmetric=False, per_channel=True)


def test_what_a_spec_leaves_open_is_the_default_of_its_role():
  open_, sided = TensorSpec(bits=4), TensorSpec(bits=4, symmetric=True)
  rule = Rule(weights=open_, activations=open_)
  assert rule.weights == TensorSpec(bits=4, symmetric=True, per_channel=True)
  assert rule.activations == TensorSpec(bits=4, symmetric=False, per_channel=False)
  assert Rule(weights=sided).weights.per_channel and not Rule(activations=sided).activations.per_channel
  assert Rule(activations=TensorSpec(bits=16)).activations == TensorSpec(16, True, False)
  assert not Rule(weights=TensorSpec(per_channel=False)).weights.per_channel
  with pytest.raises(ValueError, match="Rule 'conv': weights must be symmetric"):
    Rule(match="conv", weights=TensorSpec(symmetric=False))


def test_json_of_before_loads():
  spec = {"bits": 8, "symmetric": True, "per_channel": False, "quantizer": "minmax", "range": "minmax"}
  wide = {**spec, "symmetric": False}
  fields = {**QuantConfig().to_json(), "rules": [{"match": "", "kinds": [], "weights": spec,
                                                  "activations": wide}]}
  still = TensorSpec(per_channel=False, quantizer="minmax")
  assert QuantConfig.from_json(fields).rules == (Rule(weights=still, activations=still),)


def test_defaults_are_int8():
  assert (INT8_WEIGHTS.bits, INT8_WEIGHTS.symmetric, INT8_WEIGHTS.per_channel) == (8, True, True)
  assert (INT8_ACTIVATIONS.bits, INT8_ACTIVATIONS.symmetric) == (8, False)
  assert Rule() == Rule(match="", kinds=(), weights=INT8_WEIGHTS, activations=INT8_ACTIVATIONS)
  assert QuantConfig() == QuantConfig.preset("int8") == QuantConfig(rules=(Rule(),), target="litert")


def test_weights_must_be_symmetric():
  with pytest.raises(ValueError, match="Rule 'conv': weights must be symmetric"):
    Rule(match="conv", weights=TensorSpec(symmetric=False))


def test_a_bad_expression_is_named():
  with pytest.raises(ValueError, match=r"'conv\(' is no regular expression"):
    Rule(match="conv(")


def test_a_rule_matches_by_name_and_kind():
  rule = Rule(match="^block[12]/", kinds=["Conv2D", "Dense"])
  assert rule.kinds == ("Conv2D", "Dense")
  assert rule.matches("block1/conv", "Conv2D") and rule.matches("block2/x", "Dense")
  assert not rule.matches("block3/conv", "Conv2D")
  assert not rule.matches("a/block1/conv", "Conv2D")  # ^ binds to the whole name
  assert not rule.matches("block1/conv", "DepthwiseConv2D")
  assert Rule(match="conv").matches("block/conv_2", "any") and Rule().matches("x", "y")


def test_kinds_of_one_string_are_refused_instead_of_read_as_letters():
  with pytest.raises(TypeError, match="kinds"):
    Rule(kinds="Conv2D")


def test_the_first_rule_that_matches_decides():
  four = TensorSpec(bits=4, symmetric=True)
  first, second, third = Rule("logits"), Rule(kinds=("Dense",), weights=four), Rule()
  config = QuantConfig(rules=[first, second, third])
  assert config.rules == (first, second, third)
  assert config.rule("logits", "Dense") is first
  assert config.rule("dense", "Dense") is second
  assert config.rule("conv", "Conv2D") is third


def test_a_rule_matches_a_layer_by_what_it_was_made_of_as_well():
  of_user, of_part, last = Rule("^up$", ("Conv1DTranspose",)), Rule(kinds=("Conv2DTranspose",)), Rule()
  part = "up/image", "Conv2DTranspose", [("up", "Conv1DTranspose")]
  assert QuantConfig((of_user, of_part, last)).rule(*part) is of_user
  assert QuantConfig((of_part, of_user, last)).rule(*part) is of_part
  assert QuantConfig((of_user, last)).rule(*part[:2]) is last


def test_a_name_says_what_a_layer_is_a_part_of():
  rule = Rule("^sep$")
  assert rule.matches("sep/depthwise", "DepthwiseConv2D") and rule.matches("sep", "Conv2D")
  assert not rule.matches("sep2/depthwise", "DepthwiseConv2D") and not rule.matches("a/sep", "Conv2D")
  assert Rule("^a/sep$", ("ReLU",)).matches("a/sep/x/y", "ReLU")


def test_the_end_of_a_name_is_not_the_end_of_what_it_is_a_part_of():
  assert Rule("conv$").matches("expanded_conv/conv", "Conv2D")
  assert not Rule("conv$").matches("expanded_conv/project", "Conv2D")  # as MobileNetV3 names its layers


def test_a_rule_says_where_it_applies():
  assert [str(rule) for rule in (Rule(), Rule("a"), Rule("a", ("Dense", "Conv2D")))] == [
      "any layer", "match 'a'", "match 'a' and kinds Dense, Conv2D"]


def test_no_match_names_the_layer_and_the_remedy():
  with pytest.raises(ValueError, match=r"no rule matches layer 'conv' \(Conv2D\); end the rules with Rule"):
    QuantConfig(rules=(Rule("dense"),)).rule("conv", "Conv2D")


def test_an_unknown_target_is_refused():
  with pytest.raises(ValueError, match="Unknown target 'abacus'; expected one of litert"):
    QuantConfig(target="abacus")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
  config = QuantConfig.preset(name)
  assert QuantConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_presets_by_hand():
  (rule,) = QuantConfig.preset("w4a6").rules
  assert (rule.weights.bits, rule.activations.bits) == (4, 6)
  assert rule.weights.per_channel and rule.weights.symmetric and not rule.activations.symmetric
  assert rule.match == "" and rule.kinds == ()
  (rule,) = QuantConfig.preset("int8_per_tensor").rules
  assert not rule.weights.per_channel and rule.weights.bits == 8
  per_tensor = QuantConfig.preset("int8_per_tensor")
  assert (per_tensor.recipe.equalize, per_tensor.recipe.bias) == ("joint", "iterative")
  assert (QuantConfig().recipe.equalize, QuantConfig().recipe.bias) == ("none", "local")
  assert QuantConfig.preset("w8a8") == QuantConfig.preset("int8")
  tflm = QuantConfig.preset("int8_tflm")
  assert not tflm.rule("x", "Dense").weights.per_channel and tflm.rule("x", "Conv2D") == Rule()


@pytest.mark.parametrize("name", ["", "int4", "w1a8", "w9a8", "w8a16", "w8", "a8w8", "w4a8 ", "INT8"])
def test_unknown_presets_are_refused_with_the_choices(name):
  with pytest.raises(ValueError, match="int8_per_tensor, int8_tflm, int16x8, or w<bits>a<bits>") as error:
    QuantConfig.preset(name)
  assert repr(name) in str(error.value)


@pytest.mark.parametrize("field", ["equalize", "bias"])
def test_unknown_methods_are_refused_with_the_choices(field):
  with pytest.raises(ValueError, match=f"{field} must be one of none, .*, got 'best'"):
    QuantConfig(recipe=Recipe(**{field: "best"}))


@pytest.mark.parametrize("range_name, message", [
    ("best", "unknown range 'best'; expected one of minmax, .*cross_entropy"), ("", "unknown range ''"),
    ("mse:2", "'mse:2' has a number, which mse does not take"),
    ("percentile:50", "needs a number above 50 and up to 100"), ("percentile:100.1", "above 50"),
    ("lp:", "needs a number above 1 and up to 10"), ("lp:nan", "above 1"), ("lp:two", "write 'lp:2.4'")])
def test_ranges_are_checked_when_a_spec_is_made(range_name, message):
  with pytest.raises(ValueError, match=message):
    TensorSpec(range=range_name)


def test_ranges_and_their_numbers():
  assert [parse_range(name) for name in ("mse", "lp", "lp:4", "percentile:99.9")] == [
      ("mse", None), ("lp", 2.4), ("lp", 4.0), ("percentile", 99.9)]
  assert TensorSpec(range="lp:4").range == "lp:4"


def test_unknown_quantizers_are_refused_with_the_choices():
  with pytest.raises(ValueError, match="unknown quantizer 'magic'; expected one of minmax, moving"):
    TensorSpec(quantizer="magic")


def test_quantizers_are_refused_where_they_do_not_belong():
  with pytest.raises(ValueError, match="Rule 'a': weights take no quantizer 'pact'; expected .*dorefa"):
    Rule("a", weights=TensorSpec(symmetric=True, quantizer="pact"))
  with pytest.raises(ValueError, match="activations take no quantizer 'dorefa'; expected one of .*pact"):
    Rule(activations=TensorSpec(quantizer="dorefa"))


def test_one_bit_is_for_odd_integers_alone():
  for name in ("dorefa", "nested", "xnor"):
    assert TensorSpec(bits=1, symmetric=True, quantizer=name).bits == 1
  for name in ("minmax", "lsq", "lsq_plus"):
    with pytest.raises(ValueError, match="2 to 8, got 1; .* 1 for weights with one of the quantizers dorefa"):
      TensorSpec(bits=1, symmetric=True, quantizer=name)


def test_with_quantizers_replaces_them_in_every_rule_and_nothing_else():
  config = QuantConfig((Rule("a", weights=TensorSpec(4, True, True, range="mse")), Rule()),
                       recipe=Recipe(bias="none"))
  learned = config.with_quantizers(weights="lsq", activations="pact")
  assert {(rule.weights.quantizer, rule.activations.quantizer) for rule in learned.rules} == {("lsq", "pact")}
  still = config.with_quantizers(weights="minmax", activations="minmax")
  assert learned.with_quantizers(weights="minmax", activations="minmax") == still
  assert still.for_training() == still and learned.for_training() == learned


def test_quantizers_for_training_follow_what_they_quantize():
  config = QuantConfig((Rule("a", weights=TensorSpec(4, range="mse")), Rule())).for_training()
  first, last = config.rules
  assert (first.weights.quantizer, first.activations.quantizer) == ("lsq", "moving_average")
  assert (last.weights.quantizer, last.activations.quantizer) == ("moving_average", "moving_average")


def test_replacing_no_quantizers_changes_nothing():
  config = QuantConfig((Rule("a", weights=TensorSpec(4, True, True, range="mse")), Rule()))
  assert config.with_quantizers() == config
  assert config.with_quantizers(weights="dorefa").rules[0].activations == config.rules[0].activations


def test_json_keeps_every_field():
  weights = TensorSpec(bits=3, symmetric=True, quantizer="minmax", range="mse")
  config = QuantConfig(rules=(Rule("a", ("Dense",), weights, TensorSpec(7, range="percentile")), Rule()))
  assert QuantConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("value", [TensorSpec(), Rule(), QuantConfig()])
def test_specs_are_frozen_and_hashable(value):
  field = dataclasses.fields(value)[0].name
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(value, field, None)
  assert hash(value) == hash(dataclasses.replace(value))
