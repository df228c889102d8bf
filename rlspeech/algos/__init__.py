"""The algorithms. They see policies and rewards through the protocols in ``types.py`` and know no task."""
