"""What export and runtime share about TensorRT: flavours, engine identity, profiles, messages and the builder.

Nothing here imports torch or onnx: an engine is built from an ONNX file by TensorRT's own parser, so that a machine
that only runs models can rebuild its engines.
"""
