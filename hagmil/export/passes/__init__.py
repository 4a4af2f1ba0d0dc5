"""Passes over ONNX graphs: one a file, with what each requires and ensures."""
