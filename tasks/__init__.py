"""How each stage is done: one package a stage, its maths apart from I/O, its Prefect task in `task.py`."""
