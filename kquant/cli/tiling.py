"""--tile_squeeze_excite, which ptq and qat share."""

from absl import flags

from kquant.cli import flags as shared


def define() -> None:
  """--tile_squeeze_excite."""
  if shared.is_defined("tile_squeeze_excite"):
    return
  flags.DEFINE_string("tile_squeeze_excite", None, "gates of squeeze-and-excite for tiles of so many rows, "
                      "which changes what the model computes; auto: the least buffer that changes its output "
                      "by 2 % at most")
  flags.register_validator("tile_squeeze_excite", lambda value: value in (None, "auto") or (
      value.isdecimal() and int(value) > 0), message="expected a positive number of rows or auto")
