"""The night: all recipes of a folder, here, one child process at a time.

``matrix`` says what there is to do without doing it; ``nightly`` does it; ``summary`` is what
people read of either, ``ci`` what CI systems read of a plan.
"""
