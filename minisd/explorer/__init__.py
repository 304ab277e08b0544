"""The explorer: one init image, drawn at many strengths, as an interactive page in one file."""
