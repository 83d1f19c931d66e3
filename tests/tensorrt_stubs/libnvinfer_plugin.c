/* What TensorRT's Python bindings ask of libnvinfer_plugin. */
int initLibNvInferPlugins(void *logger, const char *space) { return 1; }
