"""HAG-MIL and HMIL training steps behind one protocol."""
