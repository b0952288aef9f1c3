"""The page of an experiment: one question, its arms over several seeds, and what they recommend."""
