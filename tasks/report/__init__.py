"""The last stage: what a run found, as one page that a manager can read and an engineer can trust."""
