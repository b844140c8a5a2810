"""What TensorFlow and LiteRT write to stderr on their own, past Python: kept away from a script's output."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def without_native_messages() -> Iterator[None]:
  """Keeps what native libraries write to stderr away from it; TF 2.21 heeds no variable for that.

  Python errors are raised and absl's messages shown as ever. What was written is shown when the block fails.
  """
  with tempfile.TemporaryFile() as written, open(os.dup(2), "w", buffering=1) as shown:
    stderr = os.dup(2)
    os.dup2(written.fileno(), 2)
    handler = logging.get_absl_handler().python_handler
    stream = handler.setStream(shown)
    try:
      yield
    except BaseException:
      written.seek(0)
      os.write(stderr, written.read())
      raise
    finally:
      handler.setStream(stream)
      os.dup2(stderr, 2)
      os.close(stderr)


def import_tensorflow_quietly() -> None:
  """Imports TensorFlow, lists its devices and loads a first file in LiteRT: each of them reports once."""
  with without_native_messages():
    import tensorflow as tf
    import tf_keras  # noqa: F401

    tf.config.list_physical_devices()  # a machine without a GPU is reported here

    from tflite_export.file import writer
    from tflite_export.program import program
    from tflite_export.proof import runtime

    grid = {"shape": (1, 1), "dtype": "int8", "scale": 1.0, "zero_point": 0}
    smallest = program.IntProgram({name: program.IntTensor(name, **grid) for name in "xy"},
                                  [program.IntOp("RELU", ["x"], ["y"])], ["x"], ["y"])
    runtime.Runtime(writer.to_bytes(smallest))
  tf.get_logger().setLevel("ERROR")
