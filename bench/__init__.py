"""Benchmarks: fused layers beside what PyTorch offers, on the shapes of `bench.shapes`."""
