"""The chain's graphs as ONNX: what each computes, and the two dialects that they are written in."""
