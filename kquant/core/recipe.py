"""Recipe: by which methods integers are chosen."""

import dataclasses

EQUALIZATIONS = ("none", "one_step", "two_step", "pairwise", "joint")
ROUNDINGS = ("nearest", "closed_form", "adaround", "judged")
BIAS_CORRECTIONS = ("none", "local", "analytic", "iterative")
FINETUNINGS = ("none", "bft", "qft")
EFFORTS = ("auto", "fast", "balanced", "best")
RANGES = ("minmax", "mse")
TOLERANCE_DB = 18.0
"""SQNR of the outputs that the effort "auto" is content with. (MobileNetV2 at int8, whose 372 other images
agree with float on 98.7 %, has 20 dB.)"""
_CHOICES = {"ranges": RANGES, "equalize": EQUALIZATIONS, "rounding": ROUNDINGS, "bias": BIAS_CORRECTIONS,
            "finetune": FINETUNINGS}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """HOW integers are chosen; a QuantConfig says which grids they lie on. None leaves a method open.

  Attributes:
    equalize: how channels are scaled across layers before (`kquant.equalize`; dead channels are pruned
      first): "none", "one_step", "two_step", "pairwise" or "joint".
    rounding: how weights become integers: "nearest"; or "closed_form" or "adaround", which round a layer's
      weights together and correct its bias iteratively, whatever `bias` says (`kquant.round_weights`);
      "judged": closed form, for those layers where it has less output error than nearest integers on images
      that it was not fitted to.
    bias: how biases are corrected after rounding: "none", "local", "analytic" (from batch norms) or
      "iterative".
    finetune: what is trained in the end against the float model: "none", "bft" (biases) or "qft" (weights,
      biases, scales and ranges; `kquant.finetune`); left out where held-back images do not gain.
    ranges: how activation ranges are estimated where a TensorSpec has the default, "minmax": "minmax" or
      "mse".

  Raises:
    ValueError: an unknown method.

  Example:
    >>> recipe = kq.Recipe(rounding="closed_form")
    >>> kq.QuantConfig.preset("w4a8").following(recipe).recipe
    Recipe(equalize='none', rounding='closed_form', bias='local', finetune='none', ranges='minmax')
  """

  equalize: str | None = None
  rounding: str | None = None
  bias: str | None = None
  finetune: str | None = None
  ranges: str | None = None

  def __post_init__(self):
    for name, choices in _CHOICES.items():
      if (value := getattr(self, name)) is not None and value not in choices:
        raise ValueError(f"Recipe: {name} must be one of {', '.join(choices)}, got {value!r}.")

  def methods(self) -> dict[str, str]:
    """Lists what is not left open.

    Returns:
      {field: method}.
    """
    return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

  def over(self, other: "Recipe") -> "Recipe":
    """Fills in the open methods.

    Args:
      other: the recipe that they are taken from.

    Returns:
      A new recipe.
    """
    return dataclasses.replace(other, **self.methods())

  def without(self, other: "Recipe") -> "Recipe":
    """Leaves the methods open that another recipe decides.

    Args:
      other: that recipe.

    Returns:
      A new recipe.
    """
    return dataclasses.replace(self, **dict.fromkeys(other.methods()))

  @property
  def needs_images(self) -> bool:
    """Whether a method looks at calibration images, beside their ranges and means."""
    return (self.equalize == "joint" or self.bias == "iterative" or self.rounding not in (None, "nearest")
            or self.finetune not in (None, "none"))


DEFAULT = Recipe("none", "nearest", "local", "none", "minmax")
"""What is done where neither the user nor a preset decides."""
