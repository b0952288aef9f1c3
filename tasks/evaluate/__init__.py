"""Stage *evaluate*: base, SFT, SFT control, SFT+KD and teacher on the same held-out rows."""
