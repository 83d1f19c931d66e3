"""What runs graphs, and where their arrays lie: ONNX Runtime, TensorRT and TensorRT for RTX behind one interface."""
