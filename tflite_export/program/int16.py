"""What LiteRT 2.3 runs on 16-bit activations with 8-bit weights: operators and their versions.

Measured, each operator in both sets of kernels. DEPTH_TO_SPACE, SPACE_TO_DEPTH and HARD_SWISH refuse
int16; the delegate takes no int16 operator, so the built-in kernels run what the default interpreter
runs. A kernel may be int4 where it may be with 8-bit activations.
"""

VERSIONS = {
    "ADD": 2, "AVERAGE_POOL_2D": 3, "BATCH_MATMUL": 3, "CAST": 1, "CONCATENATION": 3, "CONV_2D": 4,
    "DEPTHWISE_CONV_2D": 5, "DEQUANTIZE": 2, "FULLY_CONNECTED": 7, "GATHER": 4, "LEAKY_RELU": 2,
    "LOGISTIC": 3, "MAXIMUM": 2, "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 2, "MUL": 5, "PAD": 2, "PRELU": 1,
    "QUANTIZE": 1, "REDUCE_MAX": 2, "REDUCE_MIN": 2, "RELU": 2, "RELU6": 2, "RESHAPE": 1,
    "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3, "SOFTMAX": 3, "SPLIT": 4, "STRIDED_SLICE": 4,
    "SUB": 5, "TANH": 3, "TRANSPOSE": 2, "TRANSPOSE_CONV": 3,
}
"""{kind: version} of every operator that may touch an int16 tensor."""


def version_of(kind: str, version: int, dtypes: set[str]) -> int:
  """Returns the operator's version for tensors of these types; `version` is that for int8."""
  return max(version, VERSIONS.get(kind, version)) if "int16" in dtypes else version
