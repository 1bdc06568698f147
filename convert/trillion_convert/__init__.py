"""``trillion-convert``: checkpoints from one form to another, compared, counted and checked."""
