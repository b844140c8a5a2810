"""Recipe: what is decided stays, what is open is another's; old configs load."""

import pytest

from kquant.core.quant_config import QuantConfig
from kquant.core.recipe import DEFAULT, Recipe
from kquant.core.rule import Rule
from kquant.core.tensor_spec import TensorSpec


def test_a_recipe_over_another_keeps_what_it_decides():
  mine, other = Recipe(bias="iterative"), Recipe("joint", "closed_form", "local", "none")
  assert mine.over(other) == Recipe("joint", "closed_form", "iterative", "none")
  assert mine.methods() == {"bias": "iterative"} and Recipe().over(mine) == mine


def test_a_recipe_without_what_another_decides_is_open_there():
  assert Recipe("joint", "closed_form").without(Recipe(equalize="none")) == Recipe(rounding="closed_form")


@pytest.mark.parametrize("recipe, needs", [
    (Recipe(), False), (DEFAULT, False), (Recipe(equalize="pairwise"), False),
    (Recipe(bias="analytic"), False), (Recipe(equalize="joint"), True), (Recipe(bias="iterative"), True),
    (Recipe(rounding="adaround"), True),
    (Recipe(finetune="bft"), True)])
def test_which_methods_need_images(recipe, needs):
  assert recipe.needs_images == needs


def test_unknown_methods_are_refused_by_name():
  with pytest.raises(ValueError, match="rounding must be one of nearest, .*, judged, got 'up'"):
    Recipe(rounding="up")


def test_a_config_has_the_defaults_and_follows_a_recipe():
  assert QuantConfig().recipe == DEFAULT
  config = QuantConfig.preset("int8_per_tensor")
  assert config.recipe == Recipe("joint", "nearest", "iterative", "none", "minmax")
  others = config.following(Recipe(equalize="none", ranges="mse"))
  assert others.recipe == Recipe("none", "nearest", "iterative", "none", "mse")
  assert others.rules[0].activations.range == "mse" and config.rules[0].activations.range == "minmax"
  asked = QuantConfig((Rule(activations=TensorSpec(range="kl")),)).following(Recipe(ranges="mse"))
  assert asked.rules[0].activations.range == "kl"  # the user's own stays


def test_configs_of_both_forms_load():
  config = QuantConfig.preset("int8_per_tensor")
  fields = config.to_json()
  assert QuantConfig.from_json(fields) == config
  earlier = {**fields, **fields["recipe"]}
  del earlier["recipe"]
  assert QuantConfig.from_json(earlier) == config
