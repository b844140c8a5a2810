"""What kquant and tflite_export offer: their objects, and the functions and methods among them."""

import inspect

import kquant
import tflite_export

PACKAGES = ("kquant", "tflite_export")


def public_objects():
  """Returns {"kquant.quantize": the function}; what both packages offer once."""
  found = {f"{package.__name__}.{name}": getattr(package, name)
           for package in (kquant, tflite_export) for name in package.__all__ if name != "__version__"}
  return {name: value for name, value in found.items() if name != "tflite_export.export"}


def public_classes():
  """Returns {name: class}."""
  return {name: value for name, value in public_objects().items() if inspect.isclass(value)}


def public_functions():
  """Returns {name: function or method}, but the methods that override those of another package."""
  found = {name: inspect.unwrap(value) for name, value in public_objects().items()
           if not inspect.isclass(value)}
  for owner, cls in public_classes().items():
    for name, value in vars(cls).items():
      value = getattr(value, "__func__", value)  # of a class method
      if inspect.isfunction(value) and not name.startswith("_") and not _overrides(cls, name):
        found[f"{owner}.{name}"] = value
  return found


def _overrides(cls, name):
  """Whether a method is that of a class of another package, whose documentation holds."""
  return any(name in vars(base) for base in cls.__mro__[1:] if base.__module__.split(".")[0] not in PACKAGES)
