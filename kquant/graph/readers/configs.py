"""Configs of models as data: what in them would run code or read files, and what only training needs.

A config names classes, modules and TensorFlow functions, and may hold Python bytecode (Lambda). Keras imports
the modules and calls the functions while it builds the model; so a config is checked first.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from tensorflow.python.util import tf_export

_FUNCTIONS = ("activations", "constraints", "initializers", "losses", "metrics", "regularizers")
_CLASSES = (*_FUNCTIONS, "dtype_policies", "engine", "layers", "mixed_precision", "models", "ops",
            "optimizers")
_KERAS = r"(tf_)?keras(\.src)?"
_FUNCTION_MODULE = re.compile(rf"{_KERAS}\.({'|'.join(_FUNCTIONS)})(\.\w+)*")
_CLASS_MODULE = re.compile(rf"{_KERAS}(\.({'|'.join(_CLASSES)})(\.\w+)*)?|builtins|"
                           r"tensorflow(\.python\.framework\.\w+)?")
_OPERATIONS = re.compile(
    r"tensorflow\.python\.(framework\.constant_op|ops\.("
    r"(gen_)?(array|bitwise|clip|embedding|image|linalg|manip|math|nn|random|sort|special_math|spectral)_ops"
    r"|array_ops_stack|nn_impl|nn_impl_distribute|image_ops_impl|linalg\.\w+|signal\.\w+|"
    r"tensor_\w+|ragged\.\w+|numpy_ops\.\w+|stateless_random_ops|weak_tensor_ops))"
    r"|tf_keras\.src\.(activations|backend|losses)")
"""Modules of TensorFlow whose functions take tensors and give tensors, and touch nothing else."""
_TRAINING = ("compile_config", "training_config")
_OF_WEIGHTS = ("_initializer", "_regularizer", "_constraint")


def without_training(config: Any, registered: Callable[[str], Any]) -> Any:
  """Returns a config without what it needs for training alone, and with tuples again.

  Losses, metrics and optimizers go, of nested models too. Initializers, regularizers and constraints go where
  neither Keras nor the user has them.

  Args:
    config: of a model.
    registered: returns the class or function that a user registered under a name, or None.
  """
  if isinstance(config, list):
    return [without_training(part, registered) for part in config]
  if not isinstance(config, dict):
    return config
  if config.get("class_name") == "__tuple__" and isinstance(config.get("items"), list):
    return tuple(without_training(part, registered) for part in config["items"])
  if config.get("class_name") == "TensorShape" and isinstance(config.get("items"), list):
    return tuple(config["items"])
  return {key: None if key.endswith(_OF_WEIGHTS) and not _is_known(part, registered) else
          without_training(part, registered) for key, part in config.items() if key not in _TRAINING}


def count_calls(config: dict[str, Any]) -> int:
  """Returns how many calls the layers of a functional model have."""
  layers = config.get("config", {}).get("layers", ()) if isinstance(config.get("config"), dict) else ()
  return sum(len(layer.get("inbound_nodes") or ()) for layer in layers)


def _is_known(part: Any, registered: Callable[[str], Any]) -> bool:
  """Whether an initializer, regularizer or constraint is one of Keras or registered."""
  name = part
  if isinstance(part, dict):
    name = part.get("config") if part.get("class_name") == "function" else part.get("class_name")
    name = part.get("registered_name") or name
  return isinstance(name, str) and (registered(name) is not None or any(
      tf_export.get_symbol_from_name(f"keras.{place}.{name}") for place in _FUNCTIONS))


class _Layers(list):
  """The layers of a config, which Keras goes through until each call is made: in a damaged one, forever."""

  def __init__(self, layers: list[Any]):
    super().__init__(layers)
    calls = [layer.get("inbound_nodes") for layer in layers if isinstance(layer, dict)]
    self._walks = 20 + sum(len(nodes) for nodes in calls if isinstance(nodes, (list, tuple)))

  def __iter__(self) -> Iterator[Any]:
    self._walks -= 1
    if self._walks < 0:
      raise ValueError("its config is damaged: a layer reads a tensor that no layer makes; save it again")
    return super().__iter__()


def with_an_end(config: Any) -> Any:
  """Returns a config whose layers raise ValueError when they are gone through too often."""
  if isinstance(config, (list, tuple)):
    return type(config)(map(with_an_end, config))
  if not isinstance(config, dict):
    return config
  config = {key: with_an_end(part) for key, part in config.items()}
  if isinstance(config.get("layers"), list):
    config["layers"] = _Layers(config["layers"])
  return config


def check_config(config: Any, registered: Callable[[str], Any], *, trusted: bool = False) -> None:
  """Raises for what a model could do beside computing, before any of it is made.

  Args:
    config: of the model.
    registered: returns the class or function that a user registered under a name, or None.
    trusted: bytecode of Lambda layers may run.

  Raises:
    ValueError: it names what is unknown, or bytecode, a function or a file that is not to be used.
  """
  lambdas = []
  for part in _dicts(config):
    kind, settings = part.get("class_name"), part.get("config")
    if not isinstance(kind, str):
      continue
    if _is_lambda(part):
      lambdas.append(str(settings.get("name", kind)) if isinstance(settings, dict) else kind)
      continue
    _check_origin(part, kind, registered)
    if isinstance(settings, dict):
      _check_operation(kind, settings)
      _check_vocabulary(kind, settings)
  if lambdas and not trusted:
    raise ValueError(f"layer {lambdas[0]!r} is a Lambda, so the file holds Python code, which was not "
                     "run; build the model with TensorFlow functions in its place, or trust the file "
                     "(--trust_model, load_model(path, trusted=True))")


def holds_lambda(config: Any) -> bool:
  """Whether a config holds bytecode or the name of a Python function to run."""
  return any(_is_lambda(part) for part in _dicts(config))


def names_modules(config: Any) -> bool:
  """Whether a config has the format of Keras 2.12 and later, which says where each class is from."""
  return any("class_name" in part and "module" in part for part in _dicts(config))


def of_keras3(config: Any) -> bool:
  """Whether Keras 3 wrote a config, which does not say so: its inputs have a batch_shape."""
  return any(part.get("class_name") == "InputLayer" and isinstance(part.get("config"), dict)
             and "batch_shape" in part["config"] for part in _dicts(config))


def _dicts(config: Any) -> Iterator[dict[str, Any]]:
  """Every object of a config, outer ones first."""
  waiting = [config]
  while waiting:
    part = waiting.pop()
    if isinstance(part, dict):
      yield part
      waiting.extend(reversed(part.values()))
    elif isinstance(part, (list, tuple)):
      waiting.extend(reversed(part))


def _is_lambda(part: dict[str, Any]) -> bool:
  names = (part.get("class_name"), part.get("registered_name"))
  return "Lambda" in names or "__lambda__" in names or "function_type" in part


def _check_origin(part: dict[str, Any], kind: str, registered: Callable[[str], Any]) -> None:
  """Raises for a class or function of a module that is neither Keras' nor registered."""
  if kind == "function":
    _check_function(part, registered)
    return
  module, name = part.get("module"), part.get("registered_name") or kind
  if not isinstance(name, str) or registered(name) is not None:
    return
  of_keras = kind[:1].isupper() or kind.startswith("__")
  if "module" not in part and ">" not in name:  # as before TensorFlow 2.12: a layer of Keras or an error
    return
  if not (of_keras and isinstance(module, str) and _CLASS_MODULE.fullmatch(module)):
    raise ValueError(unknown(kind, module))


def _check_function(part: dict[str, Any], registered: Callable[[str], Any]) -> None:
  """The same for a function, which is called while the model is built."""
  module, name = part.get("module"), str(part.get("config"))
  if registered(name) is not None or (isinstance(module, str) and _FUNCTION_MODULE.fullmatch(module)):
    return
  places = (f"keras.{place}.{name}" for place in _FUNCTIONS)
  if module != "builtins" or not any(map(tf_export.get_symbol_from_name, places)):
    raise ValueError(unknown(name, module))


def _check_vocabulary(kind: str, settings: dict[str, Any]) -> None:
  """Raises for a table of words that would be read from a path or an address."""
  if isinstance(settings.get("vocabulary"), str):
    raise ValueError(f"layer {settings.get('name')!r} ({kind}) would read the file "
                     f"{settings['vocabulary'][:80]!r}; give the layer its words themselves")


def unknown(name: str, module: str | None = None) -> str:
  """Returns what is said of a layer, loss or function that nobody registered."""
  where = f" of {module}" if isinstance(module, str) else ""
  return (f"Unknown layer or function {name!r}{where}. Name the Python file that registers it "
          "(--import=FILE), or quantize the model from Python, where it is registered: "
          "kquant.quantize(model, images)")


def _check_operation(kind: str, settings: dict[str, Any]) -> None:
  """Raises for a call of a TensorFlow function that does more than compute."""
  if kind == "TFOpLambda":
    symbol = tf_export.get_symbol_from_name(str(settings.get("function")))
    module = getattr(symbol, "__module__", None) or ""
    if not _OPERATIONS.fullmatch(module):
      raise ValueError(f"layer {settings.get('name')!r} calls tf.{settings.get('function')}, which is no "
                       "function of tensors alone; build the model without it")
  elif kind == "TensorFlowOpLayer":  # `modern` leaves none
    raise ValueError(f"layer {settings.get('name')!r} holds an operation of TensorFlow 2.3 or earlier; load "
                     "it without compile=True")
