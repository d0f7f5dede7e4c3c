"""Outbound I/O: DNS, HTTP and small XRPC calls to other hosts."""
