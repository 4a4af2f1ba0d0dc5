"""Export: backbones and trained models to ONNX, proven against torch, into a bundle."""
