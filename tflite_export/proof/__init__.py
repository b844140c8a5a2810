"""What a file holds and computes: verifier, simulator, certificate."""
