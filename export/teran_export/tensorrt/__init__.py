"""TensorRT: what the engine of that name is made of. Nothing here needs TensorRT to be imported."""
