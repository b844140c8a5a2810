"""The integer program, and the rules that it must obey."""
