"""Stages *sft* and *kd*: one DeepSpeed training program, two objectives."""
