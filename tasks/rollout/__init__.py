"""Stage *rollout*: the student's own answers to prompts of the training rows, for the teacher to score."""
