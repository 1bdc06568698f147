"""The demo's data: bilingual skills that can be checked exactly, with worked reasoning, made by seeded code."""
