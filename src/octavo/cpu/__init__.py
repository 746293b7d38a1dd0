"""CPU in place of a GPU: compiled loops, products, and what Megatron-Core needs to run without CUDA."""
