"""Supervised engines: a guardian that outlives its parent by nothing, specs in, events and results out."""
