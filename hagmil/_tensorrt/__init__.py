"""TensorRT support that export and runtime share: flavours, engine identity, profiles, messages and the builder.

Nothing here imports torch or onnx. TensorRT's own parser reads the ONNX file, so that a machine with the runtime only
can rebuild engines.
"""
