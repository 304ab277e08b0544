"""The command line, around the core: switches, the prompt, files, metadata."""
