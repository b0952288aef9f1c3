"""Where code runs that a model wrote: SQL and Python, read-only and bounded."""
