"""The store of teacher scores: its format (FORMAT.md beside the stage), reading, Parquet for others."""
