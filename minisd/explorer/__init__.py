"""The explorer: one drawing over many strengths, as a page to play with, in one file."""
