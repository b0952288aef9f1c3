"""Every variant on the held-out rows: what it answers, and how likely the references are to it."""
