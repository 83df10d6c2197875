"""The fused kernels of CUDA, in Triton."""
