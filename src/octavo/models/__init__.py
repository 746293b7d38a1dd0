"""An architecture -> parameters, FLOPs, memory, traffic, and the Megatron-Core configuration that builds it."""
