"""All that knows Prefect: how a stage is run and shown, limits, workers, deployments, runs elsewhere."""
