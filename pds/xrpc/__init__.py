"""XRPC over HTTP: the listener, one path for all methods, a handler module per namespace."""
