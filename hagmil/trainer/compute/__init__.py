"""Distributed processes and mixed precision."""
