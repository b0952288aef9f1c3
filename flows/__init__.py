"""What runs: one flow a file, each readable top to bottom in the paper's order. Importing it imports no torch."""
