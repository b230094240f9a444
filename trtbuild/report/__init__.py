"""Reports: one document, shown as JSON, in the terminal, as Markdown and as JUnit XML.

``document`` holds the values and is light; ``sections`` says what a reader is shown, and
``terminal`` and ``markdown`` draw it.
"""
