"""Cross-layer scaling: which channels scale together, and by how much."""
