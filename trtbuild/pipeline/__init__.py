"""The flow from a recipe to verified engines, as plain calls with a memo of every stage.

The module ``recall`` answers a full cache hit and is light; ``run`` does the work and imports
what it needs for it.
"""
