"""Fine-tuning of a quantized model against its float model."""
