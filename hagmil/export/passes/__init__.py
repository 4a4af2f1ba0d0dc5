"""Passes over ONNX graphs, one per file; each states what it requires and ensures."""
