"""Where distilflow runs: storage, processes, services, orchestration, sandboxes, and what they are deployed with."""
