"""DiagnosisSettings: how far the doctor goes."""

import dataclasses

from kquant.core.recipe import TOLERANCE_DB, Recipe

LABELLED_IMAGES = 512
"""Images by whose labels the float model is judged, at most."""


@dataclasses.dataclass(frozen=True)
class DiagnosisSettings:
  """How far `kquant.diagnose` goes.

  Attributes:
    coverage: it looks at the tensors that make this part of all noise, 0..1.
    most_wide: tensors that it gives 16 bits, at most.
    tolerance: SQNR of the outputs in dB, as for `quantize`: no more tensors get 16 bits than it takes to
      reach it.
    images: that it judges by, at most.
    latency: measure the two files' latency, too, and what each remedy adds to bytes and latency: a file is
      made for each of them.
    recipe: what it decides is done as it is, as in `quantize`; no fine-tuning.
    seed: of the images held back and of every other random choice.

  Raises:
    ValueError: a coverage that is not in 0..1, fewer than 2 images, a negative `most_wide`.

  Example:
    >>> kq.DiagnosisSettings(most_wide=0).coverage  # all stays at 8 bits
    0.8
  """

  coverage: float = 0.8
  most_wide: int = 8
  tolerance: float = TOLERANCE_DB
  images: int = 64
  latency: bool = False
  recipe: Recipe = Recipe()
  seed: int = 0

  def __post_init__(self):
    if not 0.0 <= self.coverage <= 1.0:
      raise ValueError(f"DiagnosisSettings: coverage must be 0 to 1, got {self.coverage}.")
    if self.images < 2:
      raise ValueError(f"DiagnosisSettings: images must be 2 or more, got {self.images}.")
    if self.most_wide < 0:
      raise ValueError(f"DiagnosisSettings: most_wide must be 0 or more, got {self.most_wide}.")
