"""The operators of the ONNX domain ``prunevid`` as TensorRT plugins (TensorRT 10.9 or newer).

`nodes` makes a graph's nodes ready for TensorRT's parser, `registration` registers the plugins that they name with the
builder of this process. Both work on the machine that the engine is for, so they need neither torch nor transformers:
`nodes` needs onnx, `registration` TensorRT and Triton. The engine itself needs none of them: it holds the kernels.
"""
