"""Patches of a slide: which squares are read at each stage, and their pixels."""
