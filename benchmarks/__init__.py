"""Measured side by side with what a person would use instead."""
