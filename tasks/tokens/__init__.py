"""Texts as tokens: chat templates, rows as ids, vocabularies, and the alignment of two of them."""
