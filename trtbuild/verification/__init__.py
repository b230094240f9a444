"""Verification: what an engine computes and costs, compared with the original framework.

``results`` holds the values and is light; the other modules measure and need NumPy.
"""
