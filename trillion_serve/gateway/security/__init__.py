"""Who may come in: API keys, and bodies that are refused before anyone reads them."""
