"""One small function an operator: a Keras call becomes integer operators; one family a file."""
