"""Float .tflite files as tf_keras models: one converter for each operator, in tables by family."""
