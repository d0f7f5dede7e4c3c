"""Numbered migrations, applied in order by `pds/store/migrate.py`."""
