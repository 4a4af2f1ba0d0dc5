"""Patches of a slide: their coordinates at each stage, and their pixels."""
