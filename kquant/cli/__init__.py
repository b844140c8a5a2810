"""Scripts: flags in, a library call, files and a table out. Importing this package does nothing."""
