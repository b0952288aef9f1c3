"""The command line: `distilflow run`, `sweep`, `estimate`, `export`, `publish`, `gc`, `up`, `worker` …"""
