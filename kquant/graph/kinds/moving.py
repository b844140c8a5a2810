"""Kinds that cut, join, copy and rearrange elements, and resizing."""

from typing import Any

from kquant.graph.kinds import moment_rules, scale_rules
from kquant.graph.kinds.record import LayerFacts, Refusal, refused, taken_apart
from kquant.graph.kinds.slicing import (
  CONSTANT_BESIDE,
  refused_batch_axis,
  refused_join,
  refused_pad,
  refused_slice,
  refused_stack,
)


def _up_sampling_kind(config: dict[str, Any]) -> str:
  """One that interpolates has a kind of its own."""
  interpolation = config.get("interpolation", "nearest")
  return "UpSampling2D" + (str(interpolation).capitalize() if interpolation != "nearest" else "")


def _resizing_kind(config: dict[str, Any]) -> str:
  """The class and how it interpolates, or that it crops."""
  cut = config.get("crop_to_aspect_ratio", False)
  return "Resizing:cropped" if cut else f"Resizing:{config['interpolation']}"


KIND_BY_CONFIG = {"UpSampling2D": _up_sampling_kind, "Resizing": _resizing_kind}
"""{class that holds several kinds: a function that returns the kind for a config}."""


def _per_channel(role: str, **facts) -> LayerFacts:
  """Each output channel holds values of the input channel of that number."""
  return LayerFacts(role, pointwise=True, scale_rule=scale_rules.keep, moment_rule=moment_rules.keep, **facts)


def _padding(**facts) -> LayerFacts:
  return LayerFacts("move", pads=True, scale_rule=scale_rules.keep, moment_rule=moment_rules.pad, **facts)


_MOVE = LayerFacts("move")
_RESIZES = taken_apart(Refusal("resizes images of open size, or to a size that the image decides",
                               "give the model images of fixed size, and resize them to a fixed one"))
_COPIES = refused("moves elements by amounts that are computed, or moves the batch",
                  "give constant amounts, for a tensor of fixed shape, and leave the batch axis alone")
_SIZES = taken_apart(Refusal("gives a size that is open or a number of images",
                              "give the model inputs of fixed sizes, and compute nothing of the batch size"))
_MIXES = refused("mixes the batch with other axes, or has an open shape",
                 "leave the batch axis in front by itself, and fix the input's shape")

KINDS: dict[str, LayerFacts] = {
    "ZeroPadding1D": _padding(),
    "ZeroPadding2D": _padding(passes_copies=True),
    "ZeroPadding3D": taken_apart(),
    "Cropping1D": _per_channel("move"),
    "Cropping2D": _per_channel("move"),
    "Cropping3D": taken_apart(),
    "CenterCrop": _RESIZES,
    "RandomCrop": _RESIZES,
    "UpSampling1D": LayerFacts("opaque", taken_apart=True, scale_rule=scale_rules.keep),
    "UpSampling2D": _per_channel("move", passes_copies=True),
    "UpSampling2DBilinear": _per_channel("average"),
    **{f"UpSampling2D{name}": _RESIZES for name in (
        "Area", "Bicubic", "Gaussian", "Lanczos3", "Lanczos5", "Mitchellcubic")},
    "UpSampling3D": taken_apart(),
    "Resizing": _RESIZES,
    "Resizing:nearest": _per_channel("move"),
    "Resizing:bilinear": _per_channel("average"),
    "Flatten": _per_channel("move"),
    "Reshape": _per_channel("move"),
    "Permute": LayerFacts("move", scale_rule=scale_rules.permute, moment_rule=moment_rules.permute),
    "Concatenate": LayerFacts("move", joins=True, mask="joined", scale_rule=scale_rules.concatenate,
                              moment_rule=moment_rules.concatenate, refused_form=refused_join),
    "RepeatVector": taken_apart(),
    "tf.__operators__.getitem": LayerFacts("move", refused_form=refused_slice),
    "tf.split": LayerFacts("move", scale_rule=scale_rules.split, refused_form=refused_batch_axis(2)),
    "tf.unstack": LayerFacts("move", refused_form=refused_batch_axis(2)),
    "tf.stack": LayerFacts("move", refused_form=refused_stack),
    "tf.nn.depth_to_space": _MOVE,
    "tf.nn.space_to_depth": _MOVE,
    "tf.compat.v1.pad": LayerFacts("move", pads_as_called=True, refused_form=refused_pad),
    "tf.concat": taken_apart(CONSTANT_BESIDE),
    "tf.image.resize": _RESIZES,
    "tf.shape": _SIZES,
    "tf.compat.v1.shape": _SIZES,
    "tf.size": _SIZES,
    "tf.compat.v1.size": _SIZES,
    "tf.rank": _SIZES,
    "tf.zeros_like": _SIZES,
    "tf.compat.v1.zeros_like": _SIZES,
    "tf.ones_like": _SIZES,
    "tf.compat.v1.ones_like": _SIZES,
    "tf.reshape": _MIXES,
    "tf.tile": _COPIES,
    "tf.roll": _COPIES,
    "tf.repeat": _COPIES,
    "tf.gather": _COPIES,
    "tf.compat.v1.gather": _COPIES,
}
