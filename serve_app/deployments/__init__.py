"""Thin Ray Serve shells around plain asynchronous classes."""
