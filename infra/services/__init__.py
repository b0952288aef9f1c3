"""The servers that a laptop needs, started where none is configured: SeaweedFS and Prefect."""
