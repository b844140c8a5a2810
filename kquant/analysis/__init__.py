"""Where the noise of a quantized network comes from: tensor by tensor, layer by layer."""
