"""What a machine with a GPU can tell that no other can: `python -m bench.gpu_check`."""
