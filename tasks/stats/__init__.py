"""Intervals, paired tests and agreement."""
