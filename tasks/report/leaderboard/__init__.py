"""The page of a sweep: students ranked by quality and cost."""
