"""What the method costs on an NVIDIA GPU with torch and the Triton kernels: `python -m benchmarks.gpu.method`."""
