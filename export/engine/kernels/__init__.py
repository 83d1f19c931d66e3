"""The operators of the ONNX domain `prunevid` as GPU kernels, written in Triton.

`dpc_knn`, `refine_segments` and `group_topk` hold a kernel each; `compiler` turns them into PTX without a GPU.
Importing this package does not import Triton; its modules need it, and none of them needs torch.
"""

MAX_TOKENS = 1024
"""Most tokens in a group that DpcKnn clusters: one program keeps all of them."""

MAX_FRAMES = 256
"""Most frames that RefineSegments takes: one warp keeps all of them."""
