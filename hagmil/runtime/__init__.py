"""The runtime: slides, tissue, quadtree, patches, sessions, the cascade and its results. No torch, no onnx."""
