"""The demo: from nothing to a served model that answers held-out questions, every stage a real command."""
