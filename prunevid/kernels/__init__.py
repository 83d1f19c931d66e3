"""The operators of the ONNX domain ``prunevid`` as GPU kernels, written in Triton.

`dpc_knn`, `refine_segments` and `group_topk` hold a kernel each; `launch` runs them on torch tensors, `compiler` turns
them into PTX without a GPU. Importing this package imports neither Triton nor torch; its modules need Triton.
"""

MAX_TOKENS = 1024
"""Most tokens in a group that DpcKnn clusters: one program keeps all of them."""

MAX_FRAMES = 256
"""Most frames that RefineSegments takes: one warp keeps all of them."""
