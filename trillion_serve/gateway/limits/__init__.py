"""How much one caller may ask for: rates, concurrency, and tokens counted where they are spent."""
