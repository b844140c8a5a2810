"""Registers kquant's layers with tf_keras once both are imported, in either order.

Keras finds a class in a model file only when the module that registers it is imported; `import kquant`
alone must not import TensorFlow. So the import of tf_keras is waited for.
"""

import importlib
import importlib.abc
import importlib.util
import sys

_REGISTERING = ("kquant.core.capped_relu", "kquant.core.functions", "kquant.qmodel.layers",
                "kquant.qmodel.folded_conv", "kquant.qat.metrics")


def register_layers() -> None:
  """Registers kquant's layers, quantizers and QuantizeConfigs, where tf_keras is imported."""
  if "tf_keras" in sys.modules:
    for module in _REGISTERING:
      importlib.import_module(module)


def register_when_keras_is_imported() -> None:
  """Registers them now, or when tf_keras is imported."""
  if "tf_keras" in sys.modules:
    register_layers()
  else:
    sys.meta_path.insert(0, _KerasWatcher())


class _KerasWatcher(importlib.abc.MetaPathFinder):
  """Leaves the import of tf_keras to the finders behind it, and acts when it is over."""

  def find_spec(self, name, path=None, target=None):
    """Returns the spec of tf_keras, nothing for all others."""
    if name != "tf_keras":
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
      return spec
    execute = spec.loader.exec_module

    def execute_and_register(module):
      execute(module)
      if not _kquant_is_importing():  # then `kquant.__getattr__` registers, when that is over
        register_layers()

    spec.loader.exec_module = execute_and_register
    return spec


def _kquant_is_importing() -> bool:
  return any(getattr(module.__spec__, "_initializing", False) for name, module in list(sys.modules.items())
             if name.startswith("kquant."))
