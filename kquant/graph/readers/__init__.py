"""Readers: models of other makes, as tf_keras models that compute the same."""
