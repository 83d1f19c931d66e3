"""From a bundle's graphs to TensorRT engines, on the device that will run them: `prunevid build`."""
