"""A teacher behind an API: it answers the training prompts itself, and tells the log-probs of what it writes."""
