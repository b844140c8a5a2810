"""All that is known of each Keras layer kind: one record a kind, a family of kinds a file."""
