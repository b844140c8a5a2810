"""Lets tf_keras find kquant's layers in model files wherever kquant is imported.

Keras finds a class in a file only when the module that registers it is imported, and `import kquant` alone
must not import TensorFlow. So Keras' look-up imports those modules when it is asked for one of ours, or for
a model: in .keras files it asks for the layers only if it knows of them.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import types

_LOOK_UP = "tf_keras.src.saving.object_registration"
_REGISTERING = ("kquant.graph.capped_relu", "kquant.graph.carry", "kquant.graph.functions",
                "kquant.graph.masks", "kquant.graph.row_lookup", "kquant.qmodel.configs",
                "kquant.qmodel.quantize_activation", "kquant.qmodel.quantize_weights",
                "kquant.qmodel.folded_conv", "kquant.qat.metrics", "kquant.anyprecision.model")
_MODELS = ("Functional", "Sequential", "Model")  # beside those that users register, as package>name


def extend_look_up() -> None:
  """Extends Keras' look-up of registered classes, now or when tf_keras is imported."""
  if _LOOK_UP in sys.modules:
    _extend(sys.modules[_LOOK_UP])
  else:
    sys.meta_path.insert(0, _Watcher())


class _Watcher(importlib.abc.MetaPathFinder):
  """Finds the module of the look-up as any finder would, and extends it once it is executed."""

  def find_spec(self, name, path=None, target=None):
    """Returns the spec of that module, nothing for all others."""
    spec = importlib.machinery.PathFinder.find_spec(name, path) if name == _LOOK_UP else None
    if spec is not None:
      execute = spec.loader.exec_module

      def execute_and_extend(module):
        execute(module)
        _extend(module)

      spec.loader.exec_module = execute_and_extend
    return spec


def _extend(module: types.ModuleType) -> None:
  find = module.get_registered_object

  @functools.wraps(find)
  def get_registered_object(name, *args, **kwargs):
    if isinstance(name, str) and (name in _MODELS or ">" in name):
      for ours in _REGISTERING:
        importlib.import_module(ours)
    return find(name, *args, **kwargs)

  module.get_registered_object = get_registered_object
