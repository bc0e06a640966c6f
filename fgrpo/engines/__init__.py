"""Where clients live."""
