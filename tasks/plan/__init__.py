"""Before anything is spent: what a run will take on some hardware, and what will go wrong."""
