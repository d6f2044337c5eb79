"""Turns what is known about a run into texts, tables and pictures, for its page and for a report."""
