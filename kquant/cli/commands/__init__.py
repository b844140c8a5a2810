"""What the scripts do, once their flags are parsed; these modules import TensorFlow."""
