"""The work itself: back up, restore, verify, compute roots. Threads here; no printing anywhere."""
