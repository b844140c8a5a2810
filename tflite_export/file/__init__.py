"""The bytes of a .tflite file: writer and reader, which share no code."""
