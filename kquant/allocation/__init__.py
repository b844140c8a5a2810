"""Mixed precision: how many bits each layer and each grid gets, for a budget of bytes or operations."""
