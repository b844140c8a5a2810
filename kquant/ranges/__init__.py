"""Range estimators: pure, streaming, mergeable."""
