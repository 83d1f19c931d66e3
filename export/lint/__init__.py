"""What a parser of ONNX graphs takes, told without it: what is known of a graph's values, and rules for its nodes."""
