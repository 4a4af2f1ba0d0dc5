"""The networks: one file a network, tensors in, a named tuple out."""
