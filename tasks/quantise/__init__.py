"""A trained student in 8 or 4 bits: GGUF for llama.cpp, INT8 and FP8 for vLLM."""
