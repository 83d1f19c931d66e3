/* What TensorRT's Python bindings ask of libnvinfer beyond libnvinfer_lean, which this library is linked to. */
#include <stddef.h>

void *createInferBuilder_INTERNAL(void *logger, int version) { return NULL; }
void *getBuilderPluginRegistry(int engine_capability) { return NULL; }
