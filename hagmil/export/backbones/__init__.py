"""Patch encoders as ONNX: built-in architectures, timm models and existing ONNX files."""
