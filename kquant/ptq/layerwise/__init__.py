"""Methods that change one layer after the other: rounding, bias correction."""
