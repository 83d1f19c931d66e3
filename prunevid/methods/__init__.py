"""The method in plain NumPy: how visual tokens are merged, and which of them are kept.

It follows the paper (arXiv 2412.16117, section 3), computes in float64, and breaks every tie by the lower
index, so that one input has one result. It is made to be read and compared, not to be fast. `dpc_knn`,
`refine_segments` and `group_topk` are the data-dependent steps that an exported graph holds as operators of
their own; each can be compared on the same inputs.
"""
