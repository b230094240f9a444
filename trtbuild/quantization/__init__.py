"""Measure ranges, choose thresholds, and write Q/DQ pairs and casts into graphs."""
