"""The command line, around the core: switches, the prompt, files, metadata."""


def in_words(error: Exception) -> str:
    """An error's message; where the system reports it, without its number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
