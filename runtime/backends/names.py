"""Names of the backends, apart from their code: the command line's help need not wait for ONNX Runtime."""

BACKENDS = ("ort-cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")
