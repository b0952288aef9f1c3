"""Where distilflow runs: storage, artifact records, process supervision, embedded services, the demo."""
