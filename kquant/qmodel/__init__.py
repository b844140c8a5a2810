"""The quantized Keras model."""
