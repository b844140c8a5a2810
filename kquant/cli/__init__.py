"""Scripts. Importing this package imports TensorFlow without its start-up messages."""

import contextlib
import os
import tempfile
from collections.abc import Iterator

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")


@contextlib.contextmanager
def without_native_messages() -> Iterator[None]:
  """Keeps what native libraries write to stderr away from it; TF 2.21 heeds no variable for that.

  Python errors are raised as ever. What was written is shown when the block fails.
  """
  with tempfile.TemporaryFile() as written:
    stderr = os.dup(2)
    os.dup2(written.fileno(), 2)
    try:
      yield
    except BaseException:
      written.seek(0)
      os.write(stderr, written.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


with without_native_messages():
  import tensorflow as tf  # the messages come with the first import of the process
  import tf_keras  # noqa: F401

  tf.config.list_physical_devices()  # a machine without a GPU says so here

  from tflite_export.file import writer
  from tflite_export.program import program
  from tflite_export.proof import runtime

  _grid = {"shape": (1, 1), "dtype": "int8", "scale": 1.0, "zero_point": 0}
  _smallest = program.IntProgram({name: program.IntTensor(name, **_grid) for name in "xy"},
                                 [program.IntOp("RELU", ["x"], ["y"])], ["x"], ["y"])
  runtime.Runtime(writer.to_bytes(_smallest))  # LiteRT greets with the first file it loads

tf.get_logger().setLevel("ERROR")
