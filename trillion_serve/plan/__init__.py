"""How much memory a model takes on an engine, and how many requests fit beside it. Nothing here needs a device."""
