"""All tables, by numbered migrations that `pds/store/migrate.py` applies in order.

The comment above a table declares it `durable` or `scratch`.
"""
