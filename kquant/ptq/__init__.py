"""Post-training methods: what changes integers after ranges are known."""
