"""Requests for the reference and ours, group by group; see `tests.interop.side_by_side`."""
