"""Import of heads of other projects: CLAM, DSMIL, TransMIL, STAMP, MIL-Lab and AttentionDeepMIL."""
