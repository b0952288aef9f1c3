"""Texts as text: language, code in an answer, task categories, refusals, overlap, Markdown. No tokenizer."""
