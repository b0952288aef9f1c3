"""S3-compatible storage: objects, artifacts with their records, claims on work."""
