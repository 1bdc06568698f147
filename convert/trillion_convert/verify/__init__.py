"""``trillion-convert verify``: two forms of a model on the same prompts, token by token."""
