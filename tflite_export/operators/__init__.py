"""What is known of each TFLite operator: one record each, a family a file, and the rules that ask them."""
