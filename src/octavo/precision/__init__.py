"""BF16 and the FP8 recipes: Transformer Engine on GPUs, emulation elsewhere."""
