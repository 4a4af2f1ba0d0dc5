"""The runtime: slides, tissue, patches, sessions, the cascade and its results, without torch and onnx."""
