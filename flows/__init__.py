"""What runs: one flow a file, each readable top to bottom in the paper's order. Importing it imports no torch."""

from flows.run_log import tell_mistakes_once

tell_mistakes_once()
