"""The explorer: one init image, drawn at many strengths, as an interactive page in one file; and
the studio: a page on which you draw, and which shows each step as it is computed."""
