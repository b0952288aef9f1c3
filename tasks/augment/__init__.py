"""Stage *augment* (black-box distillation, paper section 3.1): four LLM agents under one controller."""
