"""Quantization-aware training: callbacks for model.fit."""
