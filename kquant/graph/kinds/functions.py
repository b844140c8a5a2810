"""Functions of TensorFlow that have no integer form, each with what a user does in its place."""

import dataclasses

from kquant.graph.kinds.record import LayerFacts, refused

_CHOICE = refused("chooses among values",
                  "leave it out of the model: the integers of its input have the same order, so apply it to "
                  "the output of the file")
_COMPARISON = refused("compares values",
                      "write it with tf.nn.relu, tf.maximum or tf.minimum, or apply it to the output of the "
                      "file")
_SPECTRUM = refused("computes a spectrum",
                    "compute it before the model and give the model its result as input")
_SPREAD = refused("has no integer operator",
                  "write it as x - tf.reduce_mean(x), tf.square and tf.reduce_mean")
_IMAGE = refused("prepares images", "apply it to the images before the model")
_RANDOM = refused("is random",
                  "leave it out, or use a layer such as GaussianNoise, which acts in training alone")
_CAST = dataclasses.replace(
    refused("changes the type of a tensor",
            "make the input of the model float32, and leave out casts to integers"), casts=True)

KINDS: dict[str, LayerFacts] = {
    **{f"tf.{name}": _CHOICE for name in (
        "argmax", "math.argmax", "argmin", "math.argmin", "math.top_k", "nn.top_k", "sort", "argsort",
        "one_hot", "math.in_top_k", "compat.v1.arg_max", "compat.v1.argmax", "compat.v1.argmin")},
    **{f"tf.{name}": _COMPARISON for name in (
        "math.greater", "math.greater_equal", "math.less", "math.less_equal", "math.equal", "math.logical_or",
        "math.logical_not", "where", "compat.v1.where")},
    **{f"tf.math.{name}": dataclasses.replace(_COMPARISON, taken_apart=True) for name in (
        "not_equal", "logical_and", "reduce_any", "reduce_all")},
    **{f"tf.signal.{name}": _SPECTRUM for name in ("rfft", "fft", "stft", "fft2d", "rfft2d", "dct", "frame")},
    **{f"tf.{name}": _SPREAD for name in (
        "math.reduce_variance", "math.reduce_std", "norm", "compat.v1.norm", "linalg.norm")},
    **{f"tf.image.{name}": _IMAGE for name in (
        "per_image_standardization", "rgb_to_grayscale", "rgb_to_hsv", "rgb_to_yuv", "adjust_contrast",
        "adjust_brightness", "resize_with_pad", "crop_and_resize", "central_crop", "convert_image_dtype")},
    **{f"tf.random.{name}": _RANDOM for name in (
        "normal", "uniform", "truncated_normal", "stateless_normal")},
    "tf.cast": _CAST,
    "tf.dtypes.cast": _CAST,
    "tf.math.cumsum": refused(
        "has no integer operator", "write the sum over the last axis as a product with constants: "
        "tf.matmul(x, np.triu(np.ones((n, n), np.float32)))"),
    "tf.nn.log_softmax": refused("has no integer operator",
                                 "let the model end in the logits, or in a Softmax"),
    "tf.math.reduce_prod": refused("multiplies along an axis", "split the axis and multiply the parts"),
    "tf.math.floormod": refused("jumps", "leave it out, or apply it before the model"),
}
