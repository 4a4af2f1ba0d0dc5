"""Export of backbones and trained models to bundles of ONNX graphs."""
