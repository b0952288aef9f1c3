"""Stage *logits* (paper, section 3.2): the teacher's top-K log-probabilities of every supervised token, stored."""
