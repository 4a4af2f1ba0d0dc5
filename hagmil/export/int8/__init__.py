"""Quantisation of backbones to int8."""
