"""Inference engines, vLLM and its reference: they score rows, or answer prompts."""
