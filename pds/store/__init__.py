"""Durable rows: the engine, and one module for each group of tables."""
