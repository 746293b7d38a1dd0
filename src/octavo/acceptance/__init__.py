"""`octavo accept`: what a cluster's GPUs reach, held against the data sheet, the forecast and the emulation."""
