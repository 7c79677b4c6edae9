"""The ledger in a PostgreSQL database, for a run directory with a `ledger.toml`.

ledger_address   reads ledger.toml: which database, and which batch in it
postgres_ledger  PostgresLedger: transactions, and what PostgreSQL does in its own way
connection       connects, and tells which errors will pass
durability       refuses servers that may forget a commit
schema.sql       the tables

Only `ledger_address` can be imported without psycopg, the extra `postgres`.

Each batch has a schema (a namespace) of its own in the database. The tables and queries are then those of a run
directory, the numbers of jobs start at 1, and a batch is deleted, or copied by `pg_dump -n`, as a whole. What several
batches share one day, such as the limit of a key, belongs into another schema beside them.
"""
