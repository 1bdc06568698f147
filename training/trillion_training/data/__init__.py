"""Data for training: file formats, packing, resumable streams, and the demo's generated data."""
