"""SQL of unknown quality on the demo's databases, in the product's own sandbox.

The demo LLM server's verification agent and the demo's build use it.
"""

from functools import cache

from infra.sandbox.sql import ReadOnlyDatabase
from tasks.demo.schemas import Database, dump_sql


@cache
def opened(database: Database) -> ReadOnlyDatabase:
    """The database, loaded once a process."""
    return ReadOnlyDatabase(dump_sql(database))
